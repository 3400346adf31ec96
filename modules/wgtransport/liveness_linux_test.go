package wgtransport

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLiveness(t *testing.T) {
	h := startHome(t, loopbackSockets{}, newAuthority(t), "a.example")
	for _, c := range []struct {
		name, transport string
		on, idle, again int // s
	}{
		{"default", "", 1, 30, 10},
		{"interval", "keepalive_interval 7s", 1, 7, 3},
		{"off", "keepalive_interval -1s", 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, tunnel := newRelay(t)
			r.mustLoad(t, "home:"+h.plain, "", c.transport)
			if status, _ := r.get(t, "a.example", "/"); status != 200 {
				t.Fatalf("status %d", status)
			}
			tunnel.mu.Lock()
			defer tunnel.mu.Unlock()
			raw, err := tunnel.conns[0].(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			_ = raw.Control(func(fd uintptr) {
				for option, want := range map[[2]int]int{
					{unix.SOL_SOCKET, unix.SO_KEEPALIVE}:      c.on,
					{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}:    c.again,
					{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}:     c.idle,
					{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: 0, // it is not for this
				} {
					if want == 0 && option[1] != unix.SO_KEEPALIVE && option[1] != unix.TCP_USER_TIMEOUT {
						continue
					}
					if got, err := unix.GetsockoptInt(int(fd), option[0], option[1]); got != want || err != nil {
						t.Errorf("option %v is %d, want %d (%v)", option, got, want, err)
					}
				}
			})
		})
	}
}
