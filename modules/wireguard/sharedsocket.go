package wireguard

import (
	"sync"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// listeners holds the sockets inside tunnels that configurations listen on,
// by network, tunnel and port. Caddy asks for a listener at every reload, and
// both configurations use it for a moment, so it is one socket with several
// users.
var listeners = caddy.NewUsagePool()

type listenerKey struct {
	network string
	tunnel  string
	port    uint16
}

// sharedSocket is a sharedListener or a sharedPacketConn.
type sharedSocket interface {
	caddy.Destructor

	// hasStopped says whether nothing will ever come from it any more.
	hasStopped() bool
}

// slot is what listeners has for a key. Its socket is replaced if it has
// stopped, as with its tunnel, while it still has users: they have been told,
// and only they would keep it in the pool.
type slot struct {
	mu     sync.Mutex
	socket sharedSocket // nil before the first has been opened
}

// acquire returns the socket of a key, which open makes if there is none. The
// caller has to release it.
func acquire(key listenerKey, open func() (sharedSocket, error)) (socket sharedSocket, release func() error, err error) {
	value, _, err := listeners.LoadOrNew(key, func() (caddy.Destructor, error) { return new(slot), nil })
	if err != nil {
		return nil, nil, err
	}
	release = func() error {
		_, err := listeners.Delete(key)
		return err
	}
	if socket, err = value.(*slot).get(open); err != nil {
		_ = release()
		return nil, nil, err
	}
	return socket, release, nil
}

func (s *slot) get(open func() (sharedSocket, error)) (sharedSocket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket != nil && !s.socket.hasStopped() {
		return s.socket, nil
	}
	if s.socket != nil {
		// It has failed already.
		_ = s.socket.Destruct()
		s.socket = nil
	}
	socket, err := open()
	if err != nil {
		return nil, err
	}
	s.socket = socket
	return socket, nil
}

// Destruct closes the socket once its last user is closed.
func (s *slot) Destruct() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket == nil {
		return nil
	}
	return s.socket.Destruct()
}

// isClosed says whether a channel that carries nothing is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// caddyLog is the log of what outlives the configuration that began it.
func caddyLog() *zap.Logger { return caddy.Log().Named("wireguard") }
