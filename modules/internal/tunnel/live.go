package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/homeward-relay/homeward/modules/internal/netstack"
	"github.com/homeward-relay/homeward/modules/internal/wgbind"
)

// live is a tunnel that is up. What changes it is called with its Tunnel's
// mutex held.
type live struct {
	stack  netstack.Stack
	choice StackChoice // what the stack was made for
	reason string      // why it is this stack
	device *device.Device
	bind   *wgbind.Bind
	out    *window // of the packets to peers
	in     *window // of the packets from peers
	port   uint16  // the port in use, never 0
	paths  *paths

	calls   *calls
	lookups chan struct{} // has room for those that are under way

	stalls   *stalls
	refusals refusals
	repeater *repeater
	pokes    chan netip.Addr

	since time.Time // when the tunnel came up

	anew sync.Mutex // see callAnew

	mu       sync.Mutex // guards what the keeper reads as well
	config   *Config    // what the device and the stack have now
	presence map[PublicKey]*presence
	changed  chan struct{}

	// keepalives are what the peers' are, or will be when it is their turn.
	keepalives map[PublicKey]time.Duration
	logger     *zap.Logger

	stopKeeper context.CancelFunc
	keeperDone chan struct{}
}

// bringUp opens the socket and starts the device and its stack.
func bringUp(name string, config *Config, logger *zap.Logger) (*live, error) {
	stack, reason, err := newStack(name, config, logger.Named("stack"))
	if err != nil {
		return nil, fmt.Errorf("starting the TCP/IP stack of tunnel %s: %w", name, err)
	}
	l := &live{
		stack:    stack,
		choice:   config.Stack,
		reason:   reason,
		bind:     wgbind.New(),
		out:      newWindow(windowSize),
		in:       newWindow(windowSize),
		since:    time.Now(),
		config:   config,
		presence: make(map[PublicKey]*presence),
		calls:    newCalls(),
		lookups:  make(chan struct{}, lookupsAtOnce),
		changed:  make(chan struct{}, 1),
		pokes:    make(chan netip.Addr, 1),
		logger:   logger,

		keepalives: make(map[PublicKey]time.Duration),
	}
	padded := newPaddedDevice(stack.Device(), startMTU(config))
	l.paths = newPaths(config, stack.Ping, func(mtu int) error {
		if err := stack.SetMTU(mtu); err != nil {
			return err
		}
		padded.mtu.Store(int32(mtu))
		return nil
	}, l.log)
	l.repeater = newRepeater(l.poke)
	l.stalls = newStalls(l.absent)
	l.device = device.NewDevice(
		&windowDevice{&repeatingDevice{padded, l.repeater}, intake{window: l.out}, l.in, l.stalls},
		&windowBind{Bind: l.bind, out: l.out, in: l.in, stalls: l.stalls, noticed: l.wake},
		deviceLogger(logger, &l.refusals, l.recall, l.behind))
	l.bind.OnCrossing(l.uncross)
	if err := l.start(); err != nil {
		l.calls.close()
		l.paths.close()
		l.device.Close()
		return nil, errors.Join(fmt.Errorf("bringing up tunnel %s: %w", name, err), l.bind.Discard(), stack.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stopKeeper, l.keeperDone = cancel, make(chan struct{})
	go l.keep(ctx)
	why := zap.String("stack_reason", reason)
	if config.Stack == StackAuto && stack.Kind() != string(StackKernel) {
		why = zap.Skip() // which a warning has said
	}
	logger.Info("tunnel is up",
		zap.String("stack", stack.Kind()),
		why,
		zap.Uint16("listen_port", l.port),
		zap.Stringer("public_key", config.PrivateKey.Public()),
		zap.Int("mtu", startMTU(config)),
		zap.Bool("mtu_auto", config.MTU == 0),
		zap.Stringers("address", config.Addresses),
		zap.String("peers", config.describe()))
	if err := l.bind.MayFragment(); err != nil {
		logger.Info("this system may send the tunnel's packets in fragments, which some networks drop; if large transfers stall, set mtu to 1280", zap.Error(err))
	}
	if limit := wgbind.BufferLimit(); limit > 0 && limit < wgbind.BufferWanted {
		logger.Info("this host keeps UDP buffers small, which costs throughput on a fast line; as root: sysctl -w net.core.rmem_max="+strconv.Itoa(wgbind.BufferWanted)+" net.core.wmem_max="+strconv.Itoa(wgbind.BufferWanted),
			zap.Int("limit", limit))
	}
	return l, nil
}

func (l *live) start() (err error) {
	// The port is opened by hand, because wireguard-go reports a failure to
	// open it only after it has started everything else.
	if l.port, err = l.bind.Prepare(l.config.ListenPort); err != nil {
		return err
	}
	if err := l.device.IpcSet(changes(nil, l.config)); err != nil {
		return fmt.Errorf("configuring the device: %w", err)
	}
	if err := l.device.IpcSet(fmt.Sprintf("listen_port=%d\n", l.port)); err != nil {
		return fmt.Errorf("configuring the device: %w", err)
	}
	return l.device.Up()
}

// preparePort opens the port that a new configuration wants beside the one in
// use, so that a busy one is an error while the old configuration still runs.
func (l *live) preparePort(port uint16) error {
	if port == 0 || port == l.port {
		return nil
	}
	_, err := l.bind.Prepare(port)
	return err
}

// apply changes what differs between what is live and what is wanted.
func (l *live) apply(wanted *Config, logger *zap.Logger) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logger = logger
	var errs []error

	if err := l.changeStack(wanted, logger); err != nil {
		errs = append(errs, err)
	}
	if count := l.stack.Reset(func(local, remote netip.Addr) bool {
		return lost(l.config, wanted, local) || revoked(l.config, wanted, remote)
	}); count > 0 {
		logger.Info("closed the connections of peers, or of addresses of theirs or this end's, that the configuration has no more", zap.Int("count", count))
		l.out.empty(flushTimeout) // the resets, while there is somebody to take them
	}
	if !slices.Equal(l.config.Addresses, wanted.Addresses) {
		if err := l.stack.SetAddresses(wanted.Addresses); err != nil {
			errs = append(errs, fmt.Errorf("changing the tunnel's addresses: %w", err))
		}
	}
	if err := l.paths.configure(wanted.MTU); err != nil {
		errs = append(errs, fmt.Errorf("changing the tunnel's MTU: %w", err))
	}
	if lines := changes(l.config, wanted); lines != "" {
		misled := l.misled(wanted)
		if err := l.device.IpcSet(lines); err != nil {
			errs = append(errs, fmt.Errorf("changing the tunnel's peers: %w", err))
		}
		for _, key := range misled {
			l.calls.handshake(l.device, key)
		}
		l.forgetKeepalives(wanted)
		l.forgetRefusals(wanted)
	}
	if port := wanted.ListenPort; port != 0 && port != l.port {
		if err := l.device.IpcSet(fmt.Sprintf("listen_port=%d\n", port)); err != nil {
			errs = append(errs, fmt.Errorf("changing the tunnel's port: %w", err))
		} else {
			l.port = port
			l.speak()
			logger.Info("tunnel listens on another port", zap.Uint16("listen_port", port))
		}
	}
	l.config = wanted
	l.wake()
	return errors.Join(errs...)
}

// revoked tells whether an address belongs to a peer that has it no more in
// another configuration.
func revoked(live, next *Config, address netip.Addr) bool {
	had, _ := live.PeerFor(address)
	if had == nil {
		return false
	}
	has, _ := next.PeerFor(address)
	return has == nil || has.PublicKey != had.PublicKey
}

// lost tells whether an address is this end's own no more in another
// configuration. A connection from it would only end by its timeouts.
func lost(live, next *Config, address netip.Addr) bool {
	return netstack.HasAddress(live.Addresses, address) && !netstack.HasAddress(next.Addresses, address)
}

// Revoked tells whether an error of a connection through a tunnel, which nobody
// has closed, is that its peer, its tunnel or an address of either end has been
// taken out of the configuration.
func Revoked(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNABORTED)
}

// What makes a packet leave, whose answer nobody waits for.
const (
	pokeSize    = 64
	pokeTimeout = 100 * time.Millisecond
)

// poke makes a packet to a host leave soon, and with it what is to be repeated.
func (l *live) poke(host netip.Addr) {
	select {
	case l.pokes <- host:
	default: // one is under way
	}
}

// pokeHosts does what poke asks for until ctx is done.
func (l *live) pokeHosts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case host := <-l.pokes:
			ping, cancel := context.WithTimeout(ctx, pokeTimeout)
			_ = l.stack.Ping(ping, host, pokeSize)
			cancel()
		}
	}
}

func (l *live) close() error {
	if l == nil {
		return nil
	}
	l.stopKeeper()
	<-l.keeperDone
	l.calls.close()
	l.paths.close()
	// The stack first: it resets its connections, and a device that is down
	// sends nothing.
	err := l.stack.Close()
	l.out.empty(flushTimeout)
	l.device.Close()
	return errors.Join(err, l.bind.Discard())
}

func (l *live) status() []PeerStatus {
	l.mu.Lock()
	peers := l.config.Peers
	l.mu.Unlock()
	answer, err := l.device.IpcGet()
	if err != nil {
		return nil
	}
	known := parseStatus(answer)
	status := make([]PeerStatus, 0, len(peers))
	for _, peer := range peers {
		s := PeerStatus{PublicKey: peer.PublicKey}
		if k := known[peer.PublicKey]; k != nil {
			s = *k
		}
		s.Name, s.AllowedIPs, s.PersistentKeepalive = peer.Name, peer.AllowedIPs, peer.PersistentKeepalive
		s.LastReceived = l.lastReceived(peer.PublicKey)
		if s.LastReceived.Before(s.LastHandshake) {
			s.LastReceived = s.LastHandshake // since the keeper's last look
		}
		s.PathMTU = l.paths.of(peer.PublicKey)
		status = append(status, s)
	}
	return status
}

// deviceLogger hands wireguard-go's messages on. It formats them only for a
// logger that wants them, and complaints no more than a few a minute: an absent
// peer makes wireguard-go complain every 5 s. What says that a handshake has
// failed is handed to recall instead, after a pause, and a peer whose clock is
// behind to behind.
func deviceLogger(logger *zap.Logger, refusals *refusals, recall func(peer *device.Peer, both bool), behind func(peer *device.Peer, clock tai64n.Timestamp)) *device.Logger {
	logger = logger.Named("device")
	sampled := logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 5, 0)
	}))
	debug := logger.Core().Enabled(zap.DebugLevel)
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if strings.HasPrefix(format, "Received invalid initiation message") {
				remote := fmt.Sprint(args[len(args)-1]) // where it came from
				if calls, tell := refusals.stranger(time.Now(), remote); tell {
					logger.Warn("somebody calls with a key that no peer has, or for another public key than this tunnel's; if it is a peer of yours, compare both ends' public keys",
						zap.String("remote", remote), zap.Int("calls", calls))
				}
			} else if peer, clock := refusals.said(time.Now(), format, args); peer != nil {
				// wireguard-go holds a lock that a change of its peers takes.
				go behind(peer, clock)
			}
			if debug {
				logger.Debug("wireguard-go", zap.String("detail", fmt.Sprintf(format, args...)))
			}
		},
		Errorf: func(format string, args ...any) {
			if peer, both := failed(format, args); peer != nil {
				time.AfterFunc(crossingPause, func() { recall(peer, both) })
				return
			}
			detail := fmt.Sprintf(format, args...)
			// A peer behind CGN has no endpoint until it speaks: no fault.
			if strings.Contains(detail, "no known endpoint") {
				logger.Debug("wireguard-go", zap.String("detail", detail))
				return
			}
			sampled.Warn("wireguard-go", zap.String("detail", detail))
		},
	}
}
