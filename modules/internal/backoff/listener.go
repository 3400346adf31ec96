package backoff

import (
	"errors"
	"net"
	"sync"

	"go.uber.org/zap"
)

// Listen returns a listener whose Accept does not fail before it is closed.
//
// Servers take an error of Accept for the end: caddy-l4 v0.1.2 every one that is
// no timeout, net/http a lack of memory. The port then stays open, accepts nobody,
// and nothing says so, until somebody reloads the configuration.
func Listen(l net.Listener, logger *zap.Logger) net.Listener {
	done := make(chan struct{})
	return &listener{
		Listener: l,
		done:     done,
		errs: Loop{
			Message: "accepting connections; trying again",
			Address: l.Addr(),
			Done:    done,
			Logger:  func() *zap.Logger { return logger },
		},
	}
}

type listener struct {
	net.Listener
	closing sync.Once
	done    chan struct{} // closed by Close

	mu   sync.Mutex
	errs Loop
}

// Accept waits for the next connection. Timeouts are an error still: they are how
// Caddy wakes a server where listeners cannot be shared otherwise, and no server
// ends for one.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			l.succeeded()
			return conn, nil
		}
		var netErr net.Error
		if errors.Is(err, net.ErrClosed) || errors.As(err, &netErr) && netErr.Timeout() || !l.failed(err) {
			return nil, err
		}
	}
}

func (l *listener) succeeded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs.Succeeded()
}

// failed is Loop's. Whoever else accepts from this listener waits with it.
func (l *listener) failed(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done: // not every listener then says net.ErrClosed
		return false
	default:
		return l.errs.Failed(err)
	}
}

// Close closes the listener, also while it waits after an error.
func (l *listener) Close() error {
	l.closing.Do(func() { close(l.done) })
	return l.Listener.Close()
}
