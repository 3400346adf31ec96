package tests

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestTaken measures what the relay takes of a client that home gets nothing of:
// what is lost without anybody being told, if the relay is lost next. The client
// is a program that logs. How much it is the VM's kernel decides, which can be told,
// as the README says. With HOMEWARD_LAB=1 what it does untold is measured as well.
func TestTaken(t *testing.T) {
	for _, stack := range []string{"kernel", "gvisor"} {
		t.Run(stack, func(t *testing.T) { testTaken(t, stack, "4096 131072 262144", 1<<20) })
		if os.Getenv("HOMEWARD_LAB") != "" {
			t.Run(stack+", nothing told", func(t *testing.T) { testTaken(t, stack, "", 0) })
		}
	}
}

// testTaken sets net.ipv4.tcp_rmem at the VM if it is given, and then wants the relay
// to take no more than most.
func testTaken(t *testing.T, stack, memory string, most int64) {
	const (
		length = 300
		begin  = 2 * syslogRate // until here the kernel has seen how the client sends
	)
	t.Parallel() // it mostly waits
	w := newWorld(t)
	w.relay.UseBinary(testnet.FastCaddy(t))
	told := "net.ipv4.tcp_rmem as it is"
	if memory != "" {
		w.Relay.Sysctl(t, "net.ipv4.tcp_rmem", memory)
		told = "net.ipv4.tcp_rmem = " + memory
	}
	var delivered atomic.Int64
	services.Serve(t, w.Home, ":7000", func(conn net.Conn) {
		buffer := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buffer)
			delivered.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	w.start(t, w.portsOn(t, stack))
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Little is to wait on the client's own side.
	if err := conn.(*net.TCPConn).SetWriteBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	all := func(sent int64) {
		t.Helper()
		testnet.Eventually(t, time.Minute, func() error {
			if n := delivered.Load(); n < sent {
				return fmt.Errorf("home has %d of %d bytes", n, sent)
			}
			return nil
		})
	}

	var sent int64
	message := make([]byte, length)
	ticker := time.NewTicker(time.Second / syslogRate)
	defer ticker.Stop()
	write := func() error {
		<-ticker.C
		// The relay takes no more if it has not for so long.
		conn.SetWriteDeadline(time.Now().Add(3 * time.Second))
		n, err := conn.Write(message)
		sent += int64(n)
		return err
	}
	for range begin {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	all(sent)
	w.Cut(t)
	for err == nil {
		err = write()
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	taken := acknowledged(t, conn) - delivered.Load()
	if memory != "" && taken > most {
		t.Errorf("the relay has taken %d bytes that home has not got, want at most %d", taken, most)
	}
	w.Mend(t)
	mended := time.Now()
	all(sent)
	figure(t, "Home's line dead, %s stack, %s, a client that sends %d messages of %d bytes a second: the relay takes %d KiB that home does not get; home had all of them %.1f s after the end of it.",
		stack, told, syslogRate, length, taken>>10, time.Since(mended).Seconds())
}

// acknowledged is how many bytes the other end's TCP has taken.
func acknowledged(t *testing.T, conn net.Conn) (bytes int64) {
	t.Helper()
	socket, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := socket.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			bytes = int64(info.Bytes_acked) - 1 // SYN counts as one
		}
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return bytes
}
