package publictcp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// askEnv makes the test binary ask for the congestion control that it names on
// connections to the listener it has as descriptor 3, and print its log.
const askEnv = "PUBLICTCP_ASK"

// asked is how many connections it asks for.
const asked = 3

func TestMain(m *testing.M) {
	if algorithm := os.Getenv(askEnv); algorithm != "" {
		if err := ask(algorithm); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func ask(algorithm string) error {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	logger := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), os.Stdout, zap.DebugLevel))
	for range asked {
		conn, err := accept(listener)
		if err != nil {
			return err
		}
		Tune(logger, conn, algorithm)
	}
	return nil
}

// accept accepts a connection that it makes, and ends the client's side of it.
func accept(listener net.Listener) (*net.TCPConn, error) {
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// listen returns a loopback listener whose connections begin with the given
// congestion control, whatever the host's is.
func listen(t *testing.T, algorithm string) *net.TCPListener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, algorithm)
		}); e != nil {
			return e
		}
		return err
	}}
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.(*net.TCPListener)
}

// options are a connection's congestion control and its bound on unsent data.
func options(t *testing.T, conn *net.TCPConn) (algorithm string, unsent int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if algorithm, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
			t.Error(err)
		}
		if unsent, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return algorithm, unsent
}

func TestTune(t *testing.T) {
	if !slices.Contains(strings.Fields(sysctl("allowed")), BBR) {
		t.Skip("this host does not allow bbr")
	}
	for _, tt := range []struct {
		name, algorithm string
		nearby          time.Duration
		want            string
	}{
		{"none named", "", 0, BBR},
		{"none named, near", "", time.Minute, "reno"},
		{"named", BBR, 0, BBR},
		{"named, near", BBR, time.Minute, BBR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer func(before time.Duration) { Nearby = before }(Nearby)
			Nearby = tt.nearby
			conn, err := accept(listen(t, "reno"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if algorithm, _ := options(t, conn); algorithm != "reno" {
				t.Fatalf("the connection begins with %s", algorithm)
			}
			core, log := observer.New(zap.DebugLevel)
			Tune(zap.New(core), conn, tt.algorithm)
			if algorithm, unsent := options(t, conn); algorithm != tt.want || unsent != unsentLimit {
				t.Errorf("the connection has %s and %d bytes unsent", algorithm, unsent)
			}

			conn.Close()
			Tune(zap.New(core), conn, tt.algorithm)
			Tune(zap.New(core), conn, "closed")
			if log.Len() > 0 {
				t.Errorf("it logged %v", log.All())
			}
		})
	}
}

// Where the congestion control is refused the rest is done all the same.
func TestRefusedIsStillBounded(t *testing.T) {
	conn, err := accept(listen(t, "reno"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	seen.known.Clear() // of an earlier run in this process
	core, log := observer.New(zap.DebugLevel)
	Tune(zap.New(core), conn, "no_such_thing")
	if algorithm, unsent := options(t, conn); algorithm != "reno" || unsent != unsentLimit {
		t.Errorf("the connection has %s and %d bytes unsent", algorithm, unsent)
	}
	if log.Len() != 1 {
		t.Errorf("it logged %v", log.All())
	}
}

// TestUnprivileged asks as a user without CAP_NET_ADMIN.
func TestUnprivileged(t *testing.T) {
	var restricted string
	for name := range strings.FieldsSeq(sysctl("available")) {
		if !slices.Contains(strings.Fields(sysctl("allowed")), name) {
			restricted = name
		}
	}
	const begin = "reno"
	for _, tt := range []struct {
		name, begin, algorithm string
		remedy                 string // of the one log line; "" for none
	}{
		{"not loaded", begin, "no_such_thing", "modprobe tcp_no_such_thing"},
		{"not allowed", begin, restricted, `sysctl -w net.ipv4.tcp_allowed_congestion_control="` + sysctl("allowed") + " " + restricted + `"`},
		{"had already", restricted, restricted, ""},
		{"allowed", begin, "reno", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.algorithm == "" {
				t.Skip("this host allows every congestion control that it has")
			}
			if tt.begin == restricted && os.Getuid() != 0 {
				t.Skip("only root can make a socket that has it")
			}
			lines := askUnprivileged(t, listen(t, tt.begin), tt.algorithm)
			if tt.remedy == "" {
				if len(lines) > 0 {
					t.Fatalf("it logged %v", lines)
				}
				return
			}
			if len(lines) != 1 {
				t.Fatalf("%d lines for %d connections: %v", len(lines), asked, lines)
			}
			line := lines[0]
			if line["level"] != "info" || line["wanted"] != tt.algorithm || line["congestion_control"] != tt.begin || line["available"] != sysctl("available") {
				t.Errorf("it logged %v", line)
			}
			if remedy, _ := line["remedy"].(string); !strings.Contains(remedy, tt.remedy) {
				t.Errorf("no %q in %q", tt.remedy, remedy)
			}
		})
	}
}

// askUnprivileged asks for a congestion control in a process of the user
// nobody, and returns what it logs.
func askUnprivileged(t *testing.T, listener *net.TCPListener, algorithm string) (lines []map[string]any) {
	t.Helper()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var errs bytes.Buffer
	// The folder that the test binary is in may be closed to others.
	cmd := exec.Command("/proc/self/exe")
	// The race detector would sleep a second at exit.
	cmd.Env = []string{askEnv + "=" + algorithm, "GORACE=atexit_sleep_ms=0"}
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = &errs
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	for line := range strings.Lines(string(out)) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		lines = append(lines, fields)
	}
	return lines
}
