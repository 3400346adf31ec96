package testnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestInternet makes sure of what the tests' statements rest on: everybody
// reaches the relay, and nobody reaches home from outside but by IPv6 on 443.
func TestInternet(t *testing.T) {
	internet := NewInternet(t)
	answer := func(namespace *Namespace, address string) {
		listener := namespace.Listen(t, "tcp", address)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				io.WriteString(conn, host)
				conn.Close()
			}
		}()
	}
	answer(internet.Relay, ":80")
	answer(internet.Home, ":80")
	answer(internet.Home, ":443")

	tests := []struct {
		name    string
		from    *Namespace
		address string
		want    string // the source address that the server sees, or none
	}{
		{"client to relay", internet.Client, Domain + ":80", ClientIP},
		{"client to relay, IPv6", internet.Client, "[" + RelayIP6 + "]:80", ClientIP6},
		{"home to relay is masqueraded", internet.Home, Endpoint + ":80", RouterIP},
		{"home to relay, IPv6", internet.Home, "[" + RelayIP6 + "]:80", HomeIP6},
		{"client to home, IPv6, open port", internet.Client, "[" + HomeIP6 + "]:443", ClientIP6},
		{"client to home, IPv6, closed port", internet.Client, "[" + HomeIP6 + "]:80", ""},
		{"client to home's private address", internet.Client, HomeLANIP + ":80", ""},
		{"client to home's router", internet.Client, RouterIP + ":80", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			patience := 10 * time.Second
			if test.want == "" {
				patience = time.Second
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			got := ""
			conn, err := test.from.Dial(ctx, "tcp", test.address)
			if err == nil {
				defer conn.Close()
				body, _ := io.ReadAll(conn)
				got = string(body)
			}
			if got != test.want {
				t.Errorf("the server saw %q, want %q (%v)", got, test.want, err)
			}
		})
	}
}

// TestSweep leaves a namespace with a process in it as a killed run would,
// and expects the next run to remove both.
func TestSweep(t *testing.T) {
	Need(t, "ip")
	// No process can have this number: pid_max is at most 2^22.
	const dead = 1<<22 + 1
	name := namePrefix + "4194305-1-client"
	Run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { removeNamespace(name) })
	left := Start(t, "sleep", (&Namespace{Name: name}).Command("sleep", "60"))
	Eventually(t, 5*time.Second, func() error {
		if len(namespacePIDs(name)) == 0 {
			return errors.New("nothing has entered the namespace yet")
		}
		return nil
	})
	WriteFile(t, lockPath(dead), nil, 0o600)

	sweepDead()

	select {
	case <-left.Exited():
	case <-time.After(5 * time.Second):
		t.Error("the process still runs")
	}
	if strings.Contains(Run(t, "ip", "netns", "list"), name) {
		t.Error("the namespace is still there")
	}
	if _, err := os.Stat(lockPath(dead)); err == nil {
		t.Error("the lock is still there")
	}
}
