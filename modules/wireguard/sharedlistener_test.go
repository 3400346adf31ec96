package wireguard

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestUnansweredRequest shuts a server down between a connection and its first request:
// whatever the server does with that, the next one answers what may be asked twice, if no
// handler of the first has had it.
func TestUnansweredRequest(t *testing.T) {
	const body = "POST / HTTP/1.1\r\nHost: home\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
	for _, tt := range []struct {
		name, request string
		handled       bool // by the first server, before it shuts down
		want          string
	}{
		{name: "new", request: "GET / HTTP/1.1\r\nHost: home\r\nConnection: close\r\n\r\n", want: "the second"},
		{name: "new, two at once", request: strings.Repeat("GET / HTTP/1.1\r\nHost: home\r\nConnection: close\r\n\r\n", 2)},
		{name: "new, with a body", request: body},
		{name: "new, not to be repeated", request: "POST / HTTP/1.1\r\nHost: home\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"},
		{name: "new, no request", request: "GET / or so\r\n\r\n"},
		{name: "aborted by its handler", request: "GET /abort HTTP/1.1\r\nHost: home\r\nConnection: close\r\n\r\n", handled: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			shared := newSharedListener(listener)
			defer shared.Destruct()

			var asked atomic.Int32
			handling, abort := make(chan struct{}), make(chan struct{})
			accepted := make(chan struct{})
			serve := func(name string) *http.Server {
				server := &http.Server{
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						asked.Add(1)
						if r.URL.Path == "/abort" {
							close(handling)
							<-abort
							panic(http.ErrAbortHandler)
						}
						fmt.Fprint(w, name)
					}),
					ConnState: func(_ net.Conn, state http.ConnState) {
						if name == "the first" && state == http.StateNew {
							close(accepted)
						}
					},
				}
				go server.Serve(shared.use(func() error { return nil }, net.KeepAliveConfig{}))
				return server
			}
			first := serve("the first")
			client, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(patience))
			<-accepted
			second := serve("the second")
			defer second.Close()
			send := func() {
				t.Helper()
				if _, err := io.WriteString(client, tt.request); err != nil {
					t.Fatal(err)
				}
			}
			if tt.handled {
				send()
				<-handling
			}
			shutting, shut := make(chan struct{}), make(chan struct{})
			first.RegisterOnShutdown(func() { close(shutting) })
			go func() {
				defer close(shut)
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if err := first.Shutdown(ctx); err != nil {
					t.Error(err)
				}
			}()
			<-shutting
			close(abort)
			if !tt.handled {
				send()
			}
			got, _ := io.ReadAll(client)
			if answer := string(got); tt.want == "" && answer != "" || !strings.HasSuffix(answer, tt.want) {
				t.Errorf("got %q, want %q", answer, tt.want)
			}
			<-shut
			want := 0
			if tt.handled || tt.want != "" {
				want = 1
			}
			if got := int(asked.Load()); got != want {
				t.Errorf("handlers have had it %d times, want %d", got, want)
			}
		})
	}
}

// TestHandOnBefore has a server close a connection unanswered while its listener is still
// open, as in the moment between the two steps of a shutdown: it is handed on if the
// listener closes too, and closed if it does not.
func TestHandOnBefore(t *testing.T) {
	for _, closes := range []bool{true, false} {
		t.Run(fmt.Sprint(closes), func(t *testing.T) {
			listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			shared := newSharedListener(listener)
			defer shared.Destruct()
			first := shared.use(func() error { return nil }, net.KeepAliveConfig{})
			client, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(patience))
			const request = "GET / HTTP/1.1\r\nHost: home\r\n\r\n"
			if _, err := io.WriteString(client, request); err != nil {
				t.Fatal(err)
			}
			conn, err := first.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, len(request))); err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			if !closes {
				if n, err := client.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("read %d bytes, %v; want the connection closed", n, err)
				}
				return
			}
			first.Close()
			second := shared.use(func() error { return nil }, net.KeepAliveConfig{})
			conn, err = second.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			got := make([]byte, len(request))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != request {
				t.Errorf("the next one reads %q, %v", got, err)
			}
		})
	}
}
