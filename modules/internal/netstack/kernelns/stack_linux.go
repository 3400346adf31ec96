package kernelns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
)

// flushTimeout bounds how long flush waits for resets to be read from the device.
const flushTimeout = 250 * time.Millisecond

// replaceMax bounds the pauses between attempts to make another namespace.
const replaceMax = 10 * time.Second

// relistenAfter is how long tend waits before it tries again to listen.
const relistenAfter = time.Second

// Stack is the kernel's stack in a namespace of its own, behind a device. Make
// one with New.
type Stack struct {
	logger *zap.Logger
	device *device
	open   openSockets

	addresses atomic.Pointer[[]netip.Prefix]
	place     atomic.Pointer[place]

	// near is what nearCongestion says, never nil.
	near atomic.Pointer[string]

	// mu serializes changes.
	mu      sync.Mutex
	wanted  wanted
	closed  bool
	tending sync.WaitGroup

	// life ends when Close begins.
	life context.Context
	end  context.CancelFunc

	closeOnce sync.Once
}

// New makes a stack and its device. Nothing flows until somebody reads and
// writes the device. The error says why this host cannot have one: at once, or
// after some 10 s where what is in the way may pass.
func New(config Config) (netstack.Stack, error) {
	s, err := newStackPatiently(config)
	if err != nil {
		return nil, fmt.Errorf("creating kernel stack %q: %w", config.Name, err)
	}
	return s, nil
}

func newStack(config Config) (*Stack, error) {
	if err := netstack.CheckMTU(config.MTU); err != nil {
		return nil, err
	}
	if err := netstack.CheckAddresses(config.Addresses); err != nil {
		return nil, err
	}
	s := &Stack{logger: config.Logger}
	s.open.place = &s.place
	s.life, s.end = context.WithCancel(context.Background())
	if s.logger == nil {
		s.logger = zap.NewNop()
	}
	addresses := slices.Clone(config.Addresses)
	s.wanted = wanted{mtu: config.MTU, addresses: addresses}
	s.addresses.Store(&addresses)
	s.device = newDevice(config.Name, config.MTU, s.Close)
	if err := s.move(config.CongestionControl); err != nil {
		s.end()
		s.device.events.Close()
		return nil, err
	}
	near := nearCongestion(s.place.Load().stocks.tcp4, config.CongestionControl, s.wanted.congestion)
	s.near.Store(&near)
	s.tending.Go(s.tend)
	return s, nil
}

// move makes a new place and leaves the former, if there is one. What is open
// there goes on until then, and is reset when nothing can be opened there any more:
// nobody would ever hear again of what was left behind.
func (s *Stack) move(congestion string) error {
	p, err := newPlace(s.wanted, s.logger)
	if err != nil {
		return err
	}
	s.wanted.congestion = congestionOf(p.stocks.tcp4, congestion, s.logger)
	if s.wanted.congestion != "" {
		err = p.set(s.wanted)
	}
	var tun *tunFile
	if err == nil {
		tun, err = newTUNFile(p.tun)
	}
	if err != nil {
		p.close()
		p.tun.Close()
		return err
	}
	former := s.place.Swap(p)
	if former == nil {
		s.device.use(tun)
		return nil
	}
	former.leave()
	s.open.resetLeft()
	s.flush() // the resets
	s.device.use(tun)
	former.close()
	return nil
}

// tend replaces a namespace that nothing can make sockets in any more, and sees
// to it that what listened goes on.
func (s *Stack) tend() {
	var retry <-chan time.Time // while something does not listen
	for {
		select {
		case <-s.life.Done():
			return
		case <-retry:
		case <-s.place.Load().lost:
			s.logger.Error("all processes that hold the tunnel's network namespace have died at once; making another")
			s.replace()
			if s.life.Err() != nil {
				return
			}
		}
		retry = nil
		if !s.listenAgain() {
			retry = time.After(relistenAfter)
		}
	}
}

// replace makes another namespace, for as long as it takes.
func (s *Stack) replace() {
	var failing complaint
	for wait := retryMin; ; wait = min(2*wait, replaceMax) {
		err := s.replaceOnce()
		if err == nil || s.life.Err() != nil {
			return
		}
		level := failing.level(time.Now(), zap.ErrorLevel)
		s.logger.Log(level, "making the tunnel's network namespace anew; trying again",
			zap.Int("attempts", failing.attempts), zap.Duration("after", wait), zap.Error(err))
		select {
		case <-s.life.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (s *Stack) replaceOnce() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if err := s.move(s.wanted.congestion); err != nil {
		return err
	}
	s.logger.Warn("the tunnel has another network namespace; the connections of the old one were reset")
	return nil
}

// flush waits until the device's reader has taken what the kernel has sent, but not
// for long.
func (s *Stack) flush() {
	for deadline := time.Now().Add(flushTimeout); !s.device.drained() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// Device is the TUN for wireguard-go.
func (s *Stack) Device() tun.Device { return s.device }

// Kind is "kernel".
func (s *Stack) Kind() string { return "kernel" }

// SetAddresses replaces the own addresses. Either all of them are usable and
// taken, or none is.
func (s *Stack) SetAddresses(addresses []netip.Prefix) error {
	if err := netstack.CheckAddresses(addresses); err != nil {
		return fmt.Errorf("setting addresses: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.wanted
	next.addresses = slices.Clone(addresses)
	if err := s.change(next); err != nil {
		return fmt.Errorf("setting addresses: %w", err)
	}
	s.addresses.Store(&next.addresses)
	return nil
}

// SetMTU changes the size of the largest packet. Open connections go on; what
// they send is cut to the new size.
func (s *Stack) SetMTU(mtu int) error {
	if err := netstack.CheckMTU(mtu); err != nil {
		return fmt.Errorf("setting MTU: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.wanted
	next.mtu = mtu
	if err := s.change(next); err != nil {
		return fmt.Errorf("setting MTU: %w", err)
	}
	s.device.setMTU(mtu)
	return nil
}

// SetCongestionControl changes how new connections send TCP; "" is bbr where
// the kernel has it.
func (s *Stack) SetCongestionControl(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, stock := s.wanted, s.place.Load().stocks.tcp4
	next.congestion = congestionOf(stock, name, s.logger)
	if err := s.change(next); err != nil {
		return fmt.Errorf("setting congestion control: %w", err)
	}
	near := nearCongestion(stock, name, next.congestion)
	s.near.Store(&near)
	return nil
}

// change makes the place like next. If that fails it is as it was. s.mu is
// held.
func (s *Stack) change(next wanted) error {
	if s.closed {
		return net.ErrClosed
	}
	p := s.place.Load()
	if err := p.set(next); err != nil {
		return errors.Join(err, p.set(s.wanted))
	}
	s.wanted = next
	return nil
}

// CongestionControl is how new connections send TCP, "" for the kernel's
// default.
func (s *Stack) CongestionControl() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted.congestion
}

// Reset resets the connections to some addresses, as netstack.Stack says.
func (s *Stack) Reset(is func(local, remote netip.Addr) bool) int { return s.open.reset(is) }

// Close resets every connection, lets the resets leave if the device is read,
// closes every listener and the device, ends the holders, and waits until
// nothing runs any more.
func (s *Stack) Close() error {
	s.closeOnce.Do(func() {
		s.end()
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.tending.Wait()

		s.open.close()
		s.flush()
		s.device.use(nil)
		s.place.Load().close()
		s.device.events.Close()
	})
	return nil
}
