// Package publictcp prepares the TCP connections that clients open to this
// host: what they download is sent with this host's congestion control and
// through this host's send buffers, over lines that lose packets.
package publictcp

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// BBR is the congestion control to ask for where the user names none. Cubic, which most hosts default
// to, takes every loss for a full queue: on a line of 433 Mbit/s and 31 ms that
// loses one packet in a hundred it sends 5 Mbit/s, where BBR sends 300.
const BBR = "bbr"

// Nearby is the round trip below which a client keeps the host's congestion
// control, unless the user names one. It stands in the same data centre: whatever
// is lost, the next round trip repairs, and there is nothing for BBR to find out.
// Its pacing would cost the relay a tenth of its throughput and CPU at 2 Gbit/s.
// Only tests change it: their clients are all near.
var Nearby = time.Millisecond

// maxName is the longest name of a congestion control that Linux takes
// (TCP_CA_NAME_MAX less the final NUL). It cuts longer ones in silence.
const maxName = 15

// unsentLimit bounds, in bytes, what a connection's send buffer holds that has
// not been sent yet (TCP_NOTSENT_LOWAT); what is sent and not acknowledged does
// not count. Without a bound the buffer fills up to net.ipv4.tcp_wmem, 4 MiB by
// default and often much more on tuned hosts: what is written now, such as the
// headers of another HTTP/2 stream, waits behind all of it, and all of it is lost
// when home's end fails. On a line of 100 Mbit/s and 31 ms 2.7 MiB waited, a
// quarter of a second; with 1 MiB it is 0.8.
//
// The kernel asks for more when half of it is left, and it takes us a while to be
// scheduled, so fast lines want a large one. With BBR at 433 Mbit/s, 31 ms and a
// loss of 1 %, on a busy machine, medians in Mbit/s: unbounded 313, 1 MiB 306,
// 512 KiB 287, 256 KiB 272. Without loss, or at 100 Mbit/s, it makes no difference.
// Package relay sets one that fits the rate of each connection that it relays.
const unsentLimit = 1 << 20

// CheckName returns an error if no congestion control can have this name.
func CheckName(algorithm string) error {
	if algorithm == "" {
		return errors.New("checking congestion control: it has no name; give one such as bbr")
	}
	if len(algorithm) > maxName {
		return fmt.Errorf("checking congestion control %q: the name is longer than %d characters; give one such as bbr", algorithm, maxName)
	}
	for _, c := range []byte(algorithm) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return fmt.Errorf("checking congestion control %q: a name has lower-case letters, digits, _ and - only; give one such as bbr", algorithm)
		}
	}
	return nil
}

// Tune makes conn send with the given congestion control, and bounds what waits
// unsent in it. If none is given, that is BBR for all clients that are not near.
// What the kernel refuses is logged, once per process, congestion
// control and reason, with what root can do about it; the connection works on
// with what it had. It is tried anew with every connection, so what root has
// done is in force without a restart. Only Linux can do either.
func Tune(logger *zap.Logger, conn *net.TCPConn, algorithm string) {
	if algorithm == "" {
		if near(conn) {
			bound(conn)
			return
		}
		algorithm = BBR
	}
	err := set(conn, algorithm)
	if err == nil || errors.Is(err, net.ErrClosed) || !seen.first(algorithm, err) {
		return
	}
	logger.Info("keeping the host's congestion control for clients",
		append(present(conn), zap.String("wanted", algorithm), zap.Error(err), zap.String("remedy", remedy(algorithm, err)))...)
}

// bound bounds what waits unsent in conn, and leaves its congestion control alone.
func bound(conn *net.TCPConn) {
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(boundUnsent)
	}
}

// near says whether conn's client is. The round trip is that which TCP knows,
// for a connection that was just accepted the handshake's. Only Linux tells.
func near(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var micros uint32
	if e := raw.Control(func(fd uintptr) { micros, err = roundTrip(fd) }); e != nil || err != nil {
		return false
	}
	return micros > 0 && time.Duration(micros)*time.Microsecond < Nearby
}

// set makes conn use the congestion control and bounds its unsent data.
func set(conn *net.TCPConn, algorithm string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("setting congestion control %s: %w", algorithm, err)
	}
	var refused error
	if err := raw.Control(func(fd uintptr) { refused = setOptions(fd, algorithm) }); err != nil {
		return fmt.Errorf("setting congestion control %s: %w", algorithm, err)
	}
	if refused != nil {
		return fmt.Errorf("setting congestion control %s: %w", algorithm, refused)
	}
	return nil
}

// remedy is what root can do about an error of set.
func remedy(algorithm string, err error) string {
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return "none: this system does not let a program choose"
	case errors.Is(err, syscall.ENOENT):
		return fmt.Sprintf("as root of the host: modprobe tcp_%[1]s; and for the time after a restart: "+
			"echo tcp_%[1]s > /etc/modules-load.d/tcp_%[1]s.conf", algorithm)
	case errors.Is(err, syscall.EPERM):
		allowed := "<those that are allowed> " + algorithm
		if names := sysctl("allowed"); names != "" {
			allowed = names + " " + algorithm
		}
		return fmt.Sprintf("as root of the host: sysctl -w %[1]s=%[2]q; and for the time after a restart: "+
			"echo '%[1]s = %[2]s' > /etc/sysctl.d/tcp_%[3]s.conf", "net.ipv4.tcp_allowed_congestion_control", allowed, algorithm)
	}
	return "none known; please report it"
}
