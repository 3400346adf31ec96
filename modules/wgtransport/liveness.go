package wgtransport

import (
	"fmt"
	"net"
	"syscall"
	"time"
)

// keepAliveProbes is how many unanswered probes end a TCP connection.
const keepAliveProbes = 3

// setLiveness makes a connection end when home is gone. Probes find that out
// where a connection is idle. Where a request has been sent on a pooled
// connection, it is the user timeout that does, without which TCP repeats the
// request for a quarter of an hour while the client waits.
func setLiveness(conn net.Conn, interval time.Duration) error {
	if c, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		config := net.KeepAliveConfig{Enable: interval > 0, Idle: interval, Interval: interval, Count: keepAliveProbes}
		if err := c.SetKeepAliveConfig(config); err != nil {
			return fmt.Errorf("setting keep-alive: %w", err)
		}
	}
	var err error
	switch c := conn.(type) {
	case interface{ SetUserTimeout(time.Duration) error }:
		err = c.SetUserTimeout(max(0, interval))
	case syscall.Conn:
		err = setSocketUserTimeout(c, max(0, interval))
	}
	if err != nil {
		return fmt.Errorf("setting the user timeout: %w", err)
	}
	return nil
}
