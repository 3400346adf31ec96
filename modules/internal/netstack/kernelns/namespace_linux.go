package kernelns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

// deviceName is the TUN's inside the namespace, where there is no other.
const deviceName = "tunnel"

// errLost means that no process is left that could make sockets in the
// namespace.
var errLost = errors.New("all processes that hold the network namespace have died")

// namespace is a network namespace that belongs to one stack: two processes
// that hold it open and make sockets in it, its TUN, and the netlink socket
// that configures it.
//
// What is made here works on without the holders. They are only needed for
// new sockets, and one of them is enough.
type namespace struct {
	logger *zap.Logger

	tun     *os.File
	netlink *netlinkConn
	pinger  *pinger
	index   uint32 // of the TUN

	// filtered is whether the last holder runs under a system-call filter, and
	// warned whether the log has been told that one does not.
	filtered, warned bool

	mu      sync.Mutex
	servers []*server
	closed  bool
	isLost  bool

	// replenishing is held by who starts servers.
	replenishing sync.Mutex

	// closing is closed by close, and lost when the last server is gone before.
	closing, lost chan struct{}
	watching      sync.WaitGroup
}

// newNamespace makes a namespace with a TUN that is down.
func newNamespace(logger *zap.Logger) (*namespace, error) {
	n, err := startNamespace(logger, true)
	if err == nil {
		return n, nil
	}
	// Where users may make no user namespaces, root may do without.
	alone, aloneErr := startNamespace(logger, false)
	if aloneErr == nil {
		return alone, nil
	}
	if mayPass(aloneErr) {
		return nil, aloneErr // which only who may do without gets
	}
	return nil, err
}

func startNamespace(logger *zap.Logger, ownUser bool) (_ *namespace, err error) {
	cmd, control, end, err := holder.Command(ownUser)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	err = startHolder(cmd)
	end.Close()
	if err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", explainStart(err))
	}
	ended := make(chan struct{})
	go func() {
		// It ends when control is closed; how is of no interest.
		_ = cmd.Wait()
		close(ended)
	}()
	defer func() {
		control.Close()
		<-ended
	}()

	n := &namespace{logger: logger, closing: make(chan struct{}), lost: make(chan struct{})}
	defer func() {
		if err != nil {
			n.close()
			if n.tun != nil {
				n.tun.Close()
			}
		}
	}()
	if err := n.takePrivileged(control); err != nil {
		return nil, err
	}
	for range 2 {
		fd, err := askOnce(control, holder.Request{Op: holder.OpServe})
		if err != nil {
			return nil, fmt.Errorf("starting a holder of the network namespace: %w", err)
		}
		if err := n.addServer(fd[0]); err != nil {
			return nil, fmt.Errorf("starting a holder of the network namespace: %w", err)
		}
	}
	return n, nil
}

// starting keeps two holders from being started at the same time.
var starting sync.Mutex

// startHolder starts a holder. It writes the user map of the child, which is
// not this user's to write where the kernel takes the program for one with
// secrets, as it does when its file has capabilities (setcap). Nobody else gains
// by the moment in which it does not: to look into a process takes all
// capabilities that this has.
func startHolder(cmd *exec.Cmd) error {
	starting.Lock()
	defer starting.Unlock()
	const dumpable = 1
	if is, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err == nil && is != dumpable {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, dumpable, 0, 0, 0); err == nil {
			defer func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }()
		}
	}
	return cmd.Start()
}

// takePrivileged takes what only the first holder can give.
func (n *namespace) takePrivileged(control *net.UnixConn) error {
	fds, err := askOnce(control, holder.Request{Op: holder.OpSocket, Domain: unix.AF_NETLINK, Type: unix.SOCK_RAW, Protocol: unix.NETLINK_ROUTE})
	if err != nil {
		return fmt.Errorf("making a netlink socket: %w", explainSocket(err))
	}
	if n.netlink, err = newNetlinkConn(fds[0]); err != nil {
		return err
	}
	fd4, err := askOnce(control, holder.Request{Op: holder.OpSocket, Domain: unix.AF_INET, Type: unix.SOCK_RAW, Protocol: unix.IPPROTO_ICMP})
	if err != nil {
		return fmt.Errorf("making a raw socket: %w", explainStart(err))
	}
	fd6, err := askOnce(control, holder.Request{Op: holder.OpSocket, Domain: unix.AF_INET6, Type: unix.SOCK_RAW, Protocol: unix.IPPROTO_ICMPV6})
	if err != nil {
		fd6 = []int{-1} // a kernel without IPv6
	}
	if n.pinger, err = newPinger(fd4[0], fd6[0]); err != nil {
		return err
	}
	fds, err = askOnce(control, holder.Request{Op: holder.OpTUN})
	if err != nil {
		return explainTUN(err)
	}
	sockets, err := askOnce(control, holder.Request{Op: holder.OpSocket, Domain: unix.AF_INET, Type: unix.SOCK_DGRAM})
	if err != nil {
		unix.Close(fds[0])
		return fmt.Errorf("making a socket: %w", err)
	}
	defer unix.Close(sockets[0])
	n.tun, n.index, err = openTUN(fds[0], sockets[0])
	return explainStart(err)
}

// openTUN makes the TUN of an open /dev/net/tun, which it takes over, with the
// help of any socket of the namespace.
func openTUN(fd, socket int) (tun *os.File, index uint32, err error) {
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	request, err := unix.NewIfreq(deviceName)
	if err != nil {
		return nil, 0, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, 0, fmt.Errorf("making a TUN: %w", err)
	}
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		return nil, 0, fmt.Errorf("turning on the TUN's offloads: %w", err)
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFINDEX, request); err != nil {
		return nil, 0, fmt.Errorf("asking for the TUN's index: %w", err)
	}
	// The descriptor does not block, so reads wait in Go's poller.
	return os.NewFile(uintptr(fd), "/dev/net/tun"), request.Uint32(), nil
}

// addServer takes over a new holder's control socket.
func (n *namespace) addServer(fd int) error {
	s, err := newServer(fd, n.logger)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		s.end()
		return net.ErrClosed
	}
	n.filtered = s.unconfined == nil
	if !n.filtered && !n.warned {
		n.warned = true
		n.logger.Warn("the processes that hold the tunnel's network namespace run without a system-call filter", zap.Error(s.unconfined))
	}
	n.servers = append(n.servers, s)
	n.watching.Go(func() { n.watch(s) })
	return nil
}

// How long watch waits before it tries again to have a server started. What is
// in the way, such as a limit of processes, may pass in a moment or in hours.
const (
	retryMin = time.Second
	retryMax = time.Minute
)

// watch waits for a server's end and sees to a successor, for as long as it
// takes: without one, the next death is the namespace's.
func (n *namespace) watch(s *server) {
	<-s.ended
	s.end()
	var failing complaint
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := n.replenish()
		if err == nil {
			return
		}
		level := failing.level(time.Now(), zap.WarnLevel)
		n.logger.Log(level, "starting another process that holds the tunnel's network namespace; trying again",
			zap.Int("attempts", failing.attempts), zap.Duration("after", wait), zap.Error(err))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-n.closing:
		case <-n.lost:
		}
		timer.Stop()
	}
}

// replenish takes the dead out of the servers and has the living start others
// for them, until there are two, the namespace is closed or lost, or a living
// one cannot. When it returns, there is a living one or the namespace is lost.
func (n *namespace) replenish() error {
	n.replenishing.Lock()
	defer n.replenishing.Unlock()
	for {
		n.mu.Lock()
		n.servers = slices.DeleteFunc(n.servers, func(s *server) bool {
			if !s.isDead() {
				return false
			}
			if !n.closed {
				n.logger.Warn("a process that holds the tunnel's network namespace has died; its partner starts another", zap.Int("pid", s.pid))
			}
			return true
		})
		servers := slices.Clone(n.servers)
		switch {
		case n.closed, len(servers) >= 2:
			n.mu.Unlock()
			return nil
		case len(servers) == 0:
			if !n.isLost {
				n.isLost = true
				close(n.lost)
			}
			n.mu.Unlock()
			return nil
		}
		n.mu.Unlock()
		fds, err := servers[0].ask(holder.Request{Op: holder.OpServe}, 1)
		if err == nil {
			err = n.addServer(fds[0])
		}
		if err != nil && !errors.Is(err, net.ErrClosed) && !servers[0].isDead() {
			return err
		}
	}
}

// sockets makes blank sockets, at least one.
func (n *namespace) sockets(domain, kind, count int) ([]int, error) {
	request := holder.Request{Op: holder.OpSocket, Domain: int32(domain), Type: int32(kind), Count: uint32(count)}
	// When all that were known have died, one that they had started may have
	// come meanwhile.
	for range 3 {
		n.mu.Lock()
		servers, closed := slices.Clone(n.servers), n.closed
		n.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		fds, err := askAny(servers, request)
		if !errors.Is(err, errLost) {
			return fds, err
		}
		// If it fails, who watches the dead tries again.
		_ = n.replenish()
	}
	return nil, errLost
}

// askAny asks one server after the other, those last that are late already. It
// fails with errLost only if all are gone.
func askAny(servers []*server, request holder.Request) ([]int, error) {
	var prompt, late []*server
	for _, s := range servers {
		if s.isLate() {
			late = append(late, s)
		} else {
			prompt = append(prompt, s)
		}
	}
	err := error(errLost)
	for _, s := range append(prompt, late...) {
		fds, askErr := s.ask(request, 1)
		if askErr == nil {
			return fds, nil
		}
		if !errors.Is(askErr, errLost) {
			err = askErr
		}
	}
	return nil, err
}

// close ends the holders and waits until they are gone. The TUN and with it
// the namespace's last user is left to the device.
func (n *namespace) close() {
	n.mu.Lock()
	n.closed = true
	servers := slices.Clone(n.servers)
	n.mu.Unlock()
	close(n.closing)
	// Each is seen off by who watches it.
	for _, s := range servers {
		s.hangUp()
	}
	n.watching.Wait()
	if n.netlink != nil {
		n.netlink.Close()
	}
	if n.pinger != nil {
		n.pinger.close()
	}
}
