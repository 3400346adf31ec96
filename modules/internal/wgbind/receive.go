package wgbind

import (
	"errors"
	"net"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// receiveRetry is how long to wait after a socket has failed to receive. An
	// error may be a moment's, for want of memory.
	receiveRetry = 50 * time.Millisecond

	// receivePatience is how long a socket may go on failing before it is to be
	// opened anew.
	receivePatience = time.Second
)

// lasting wraps receive functions so that they return only what has arrived, or
// that they are closed. After most other errors wireguard-go reads that socket no
// more, and the tunnel is deaf for ever: RoutineReceiveIncoming in
// https://git.zx2c4.com/wireguard-go/tree/device/receive.go
func (b *Bind) lasting(receives []conn.ReceiveFunc) []conn.ReceiveFunc {
	lasting := make([]conn.ReceiveFunc, len(receives))
	for i, receive := range receives {
		lasting[i] = func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
			var since time.Time
			for {
				n, err := receive(packets, sizes, endpoints)
				if err == nil || errors.Is(err, net.ErrClosed) {
					return n, err
				}
				if since.IsZero() {
					since = time.Now()
				}
				if time.Since(since) > receivePatience {
					since = time.Now()
					b.Fail(err)
				}
				time.Sleep(receiveRetry)
			}
		}
	}
	return lasting
}

// Fail says that the sockets are dead, and why.
func (b *Bind) Fail(err error) {
	select {
	case b.failed <- err:
	default: // it is known
	}
}

// Failed has the reason when a socket has done nothing but fail for a second.
// The sockets are to be opened anew then.
func (b *Bind) Failed() <-chan error { return b.failed }
