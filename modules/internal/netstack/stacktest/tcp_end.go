package stacktest

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

func testTCPDeadlines(t *testing.T, p *pair, f family) {
	listener := listen(t, p, f)
	dialed, accepted := connect(t, p, listener)
	soon := func() time.Time { return time.Now().Add(20 * time.Millisecond) }

	buf := make([]byte, 1)
	dialed.SetReadDeadline(soon())
	_, err := dialed.Read(buf)
	wantTimeout(t, "reading", err)
	dialed.SetReadDeadline(time.Now().Add(-time.Second))
	_, err = dialed.Read(buf)
	wantTimeout(t, "reading after the deadline", err)

	// A deadline reaches a Read that waits already.
	dialed.SetReadDeadline(time.Time{})
	failed := make(chan error, 1)
	go func() {
		_, err := dialed.Read(make([]byte, 1))
		failed <- err
	}()
	dialed.SetReadDeadline(soon())
	wantTimeout(t, "reading when the deadline was set", <-failed)

	// A peer that does not read makes the writer wait.
	dialed.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	chunk := make([]byte, 64<<10)
	for err = nil; err == nil; {
		_, err = dialed.Write(chunk)
	}
	wantTimeout(t, "writing", err)

	// The connection is as good as before.
	dialed.SetDeadline(time.Now().Add(patience))
	go io.Copy(io.Discard, accepted)
	if _, err := dialed.Write([]byte("x")); err != nil {
		t.Errorf("writing after the deadline was moved: %v", err)
	}
	if _, err := accepted.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := dialed.Read(buf); err != nil || buf[0] != 'y' {
		t.Errorf("reading after the deadline was moved: %q, %v", buf, err)
	}

	listener.SetDeadline(soon())
	_, err = listener.Accept()
	wantTimeout(t, "accepting", err)
	listener.SetDeadline(time.Now().Add(patience))
	again, other := connect(t, p, listener)
	exchange(t, again, other)
}

func wantTimeout(t *testing.T, what string, err error) {
	t.Helper()
	wantError(t, what, err, os.ErrDeadlineExceeded)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%s: %v is no timeout", what, err)
	}
}

func testTCPCloseWakes(t *testing.T, p *pair, f family) {
	listener := listen(t, p, f)
	dialed, accepted := connect(t, p, listener)
	failed := make(chan error, 3)
	go func() {
		_, err := dialed.Read(make([]byte, 1))
		failed <- err
	}()
	go func() {
		var err error
		for chunk := make([]byte, 64<<10); err == nil; {
			_, err = dialed.Write(chunk)
		}
		failed <- err
	}()
	go func() {
		_, err := listener.Accept()
		failed <- err
	}()
	// Let them block: the accepted end has data when the writer runs.
	if _, err := io.ReadFull(accepted, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := dialed.Close(); err != nil {
		t.Error(err)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	for range 3 {
		wantError(t, "waiting", <-failed, net.ErrClosed)
	}
	_, err := dialed.Read(make([]byte, 1))
	wantError(t, "reading", err, net.ErrClosed)
	_, err = dialed.Write(make([]byte, 1))
	wantError(t, "writing", err, net.ErrClosed)
	wantError(t, "closing", dialed.Close(), net.ErrClosed)
	wantError(t, "half-closing", dialed.CloseWrite(), net.ErrClosed)
	wantError(t, "setting a deadline", dialed.SetDeadline(time.Time{}), net.ErrClosed)
	_, err = listener.Accept()
	wantError(t, "accepting", err, net.ErrClosed)
}

func testTCPLinger(t *testing.T, p *pair, f family) {
	listener := listen(t, p, f)
	dialed, accepted := connect(t, p, listener)
	if err := dialed.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	dialed.Close()
	_, err := accepted.Read(make([]byte, 1))
	wantError(t, "reading after RST", err, syscall.ECONNRESET)

	dialed, accepted = connect(t, p, listener)
	dialed.SetLinger(0)
	if err := dialed.SetLinger(-1); err != nil {
		t.Fatal(err)
	}
	dialed.Close()
	if _, err := accepted.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("reading after FIN: %v", err)
	}
}

func testTCPUnreadReset(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	if _, err := accepted.Write([]byte("never read")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(dialed, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	dialed.Close()
	_, err := accepted.Read(make([]byte, 1))
	wantError(t, "reading", err, syscall.ECONNRESET)
}

func testTCPBrokenPipe(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	accepted.Close()
	if _, err := dialed.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("reading after FIN: %v", err)
	}
	var err error
	for err == nil {
		_, err = dialed.Write(make([]byte, 1000))
	}
	wantError(t, "writing", err, syscall.EPIPE, syscall.ECONNRESET)
}

func testTCPKeepAlive(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	for _, config := range []net.KeepAliveConfig{
		{Enable: true},
		{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2},
		{Enable: true, Idle: -1, Interval: -1, Count: -1},
		{Enable: false},
	} {
		if err := dialed.SetKeepAliveConfig(config); err != nil {
			t.Errorf("%+v: %v", config, err)
		}
	}
	exchange(t, dialed, accepted)

	// A peer that is silently gone is found out.
	err := dialed.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.there.SetAddresses(nil); err != nil {
		t.Fatal(err)
	}
	_, err = dialed.Read(make([]byte, 1))
	wantError(t, "reading from a peer that is gone", err, syscall.ETIMEDOUT)
}

// testTCPUserTimeout is for stacks whose connections are not the kernel's,
// where the option is a socket's.
func testTCPUserTimeout(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	limited, ok := dialed.(interface{ SetUserTimeout(time.Duration) error })
	if !ok {
		t.Skipf("%T has no SetUserTimeout", dialed)
	}
	if err := limited.SetUserTimeout(time.Second); err != nil {
		t.Fatal(err)
	}
	exchange(t, dialed, accepted)

	// What a peer that is silently gone does not acknowledge ends it, though
	// nothing probes.
	if err := p.there.SetAddresses(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := dialed.Write([]byte("to nobody")); err != nil {
		t.Fatal(err)
	}
	_, err := dialed.Read(make([]byte, 1))
	wantError(t, "reading from a peer that is gone", err, syscall.ETIMEDOUT)
}

// testTCPTraffic is for stacks whose connections are not the kernel's, where
// TCP_INFO is a socket's.
func testTCPTraffic(t *testing.T, p *pair, f family) {
	dialed, accepted := connect(t, p, listen(t, p, f))
	conn, ok := dialed.(interface {
		Traffic() (asked, heard uint64, err error)
	})
	if !ok {
		t.Skipf("%T has no Traffic", dialed)
	}
	traffic := func() (asked, heard uint64) {
		t.Helper()
		asked, heard, err := conn.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		return asked, heard
	}
	await := func(what string, happened func(asked, heard uint64) bool) {
		t.Helper()
		for end := time.Now().Add(patience); !happened(traffic()); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("waited in vain for ", what)
			}
		}
	}
	_, before := traffic()
	exchange(t, dialed, accepted)
	await("an answer", func(_, heard uint64) bool { return heard > before })

	// Whoever takes nothing is asked whether there is room, and answers.
	_ = dialed.SetWriteDeadline(time.Now().Add(time.Second))
	for err := error(nil); err == nil; {
		_, err = dialed.Write(make([]byte, 64<<10))
	}
	asked, heard := traffic()
	await("a question for room", func(now, _ uint64) bool { return now > asked })
	await("its answer", func(_, now uint64) bool { return now > heard })

	// Whoever is gone is asked in vain.
	if err := p.there.SetAddresses(nil); err != nil {
		t.Fatal(err)
	}
	asked, _ = traffic()
	await("a question in vain", func(now, _ uint64) bool { return now > asked })
	dialed.Close()
	if _, _, err := conn.Traffic(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
