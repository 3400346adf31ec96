package wgtransport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestSilence is a home's behaviour as TCP tells of it, second by second.
func TestSilence(t *testing.T) {
	for _, tt := range []struct {
		name         string
		asked, heard []uint64 // the last one goes on
		limit        int      // s
		want         int      // s until the silence is as long; 0 for never
	}{
		{"nothing happens", []uint64{5}, []uint64{7}, 3, 0},
		{"all is well", []uint64{5}, []uint64{7, 8, 9, 10, 11, 12, 13}, 3, 0},
		{"nothing is answered", []uint64{5, 6, 7, 8}, []uint64{7}, 5, 6},
		{"nothing is answered any more", []uint64{5, 5, 6, 7, 8}, []uint64{7, 8, 8, 8}, 5, 7},
		{"the questions are rare", []uint64{0, 1, 1, 2, 2, 2, 2, 3}, []uint64{7}, 3, 7},
		{"the first answers are missing", []uint64{0, 1, 2, 3, 3}, []uint64{7, 7, 7, 8, 8}, 2, 0},
		{"there are too few questions", []uint64{0, 1, 2}, []uint64{7}, 3, 0},
		{"each question is answered, and they become rare", []uint64{0, 1, 1, 2, 2, 2, 2, 3}, []uint64{0, 1, 1, 2, 2, 2, 2, 3}, 1, 0},
		{"some answers are lost, and the questions are rare", []uint64{0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4}, []uint64{0, 1, 1, 1, 1, 1, 1, 2}, 3, 0},
		{"the number of questions falls with an answer", []uint64{9, 2}, []uint64{0, 1}, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := func(values []uint64, second int) uint64 { return values[min(second, len(values)-1)] }
			start := time.Now()
			s := silence{last: traffic{asked: tt.asked[0], heard: tt.heard[0]}}
			got := 0
			for second := 1; second < 20 && got == 0; second++ {
				now := traffic{asked: at(tt.asked, second), heard: at(tt.heard, second)}
				if s.see(now, start.Add(time.Duration(second)*time.Second), time.Duration(tt.limit)*time.Second) {
					got = second
				}
			}
			if got != tt.want {
				t.Errorf("it was long enough after %d s, want %d", got, tt.want)
			}
		})
	}
}

// testInterval is the probe interval in the tests below. Linux probes after
// whole seconds, and repeats a segment after 200 ms.
const testInterval = time.Second

// longest is how long it may take to notice that home has gone. On a busy machine TCP
// takes the line for a slow one, and asks less often; left to itself it would take a
// quarter of an hour.
const longest = 2 * time.Minute

// overStacks runs a test with each stack: a relay whose site is served by
// handler at home, over a line.
func overStacks(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, r *relay, l *line)) {
	for _, stack := range []string{"kernel", "gvisor"} {
		t.Run(stack, func(t *testing.T) {
			r, end := newTunneledRelay(t, stack)
			err := r.load(t, "http://home:8001", "stream_close_delay 1m", fmt.Sprintf("keepalive_interval %s\nversions 1.1", testInterval))
			if err != nil && strings.Contains(err.Error(), "creating kernel stack") {
				t.Skip("left out: this host does not have it: ", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			l := newLine(t, end.config.Peers[0].Endpoint)
			end.config.Peers[0].Endpoint = l.address
			end.up(t)
			server := httptest.NewUnstartedServer(handler)
			_ = server.Listener.Close()
			server.Listener = end.listenTCP(t)
			server.Start()
			t.Cleanup(func() {
				server.CloseClientConnections()
				server.Close()
			})
			// Home's first call may take a busy machine longer than a dial waits.
			status := 0
			for deadline := time.Now().Add(time.Minute); status != 200; {
				if status, _, _ = r.do(t, http.MethodGet, "a.example", "/", ""); status != 200 && time.Now().After(deadline) {
					t.Fatalf("status %d", status)
				}
			}
			test(t, r, l)
		})
	}
}

// much is more bytes than all buffers on the way hold.
const much = 48 << 20

// upload sends much to a path at home, and gives the status of the answer.
func upload(t *testing.T, r *relay, path string) <-chan int {
	t.Helper()
	statuses := make(chan int, 1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.address+path, io.LimitReader(zeros{}, much))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			// The relay may end the client's upload with its answer.
			statuses <- 0
			return
		}
		_ = resp.Body.Close()
		statuses <- resp.StatusCode
	}()
	return statuses
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestHomePauses: a program at home that reads nothing for a while, while its
// machine answers that there is no room, is waited for.
func TestHomePauses(t *testing.T) {
	const pause = 3 * testInterval
	overStacks(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			<-time.After(pause)
		}
		if n, err := io.Copy(io.Discard, r.Body); err != nil || r.Method == http.MethodPost && n != much {
			http.Error(w, fmt.Sprintf("%d bytes: %v", n, err), http.StatusInternalServerError)
		}
	}, func(t *testing.T, r *relay, _ *line) {
		if status := <-upload(t, r, "/"); status != 200 {
			t.Errorf("status %d", status)
		}
	})
}

// TestHomeVanishes: a home that is gone is noticed on an open connection, in
// about the probe interval.
func TestHomeVanishes(t *testing.T) {
	stuck, noticed := make(chan struct{}), make(chan struct{})
	handler := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stuck":
			_, _ = io.ReadFull(r.Body, make([]byte, 1<<20))
			stuck <- struct{}{}
			<-noticed
		case "/ws":
			switchProtocols(t, w, func(_ net.Conn, reader io.Reader) { _, _ = io.Copy(io.Discard, reader) })
		}
	}
	// Of a connection that is in use: the interval, and what is to be paid for
	// looking now and then. Of one that is idle: twice the interval, and the
	// probes' rounding.
	const least = testInterval * 9 / 10
	for _, tt := range []struct {
		name string
		lose func(t *testing.T, r *relay, cut func())
		log  string
	}{
		{"before a request", func(t *testing.T, r *relay, cut func()) {
			cut()
			if status, _, _ := r.do(t, http.MethodPost, "a.example", "/", "body"); status != http.StatusBadGateway {
				t.Errorf("status %d", status)
			}
		}, "home:8001 stopped answering on an open connection"},
		{"during an upload", func(t *testing.T, r *relay, cut func()) {
			status := upload(t, r, "/stuck")
			<-stuck
			cut()
			if got := <-status; got != http.StatusBadGateway && got != 0 {
				t.Errorf("status %d", got)
			}
			noticed <- struct{}{}
		}, "home:8001 stopped answering on an open connection"},
		{"while an upgraded connection is idle", func(t *testing.T, r *relay, cut func()) {
			conn := upgrade(t, r)
			cut()
			_, err := conn.Read(make([]byte, 1))
			if err == nil || isTimeout(err) {
				t.Errorf("reading: %v", err)
			}
		}, ""},
		{"while an upgraded connection sends", func(t *testing.T, r *relay, cut func()) {
			conn := upgrade(t, r)
			cut()
			if _, err := io.WriteString(conn, strings.Repeat("x", 100_000)); err != nil {
				t.Error(err)
			}
			_, err := conn.Read(make([]byte, 1))
			if err == nil || isTimeout(err) {
				t.Errorf("reading: %v", err)
			}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			overStacks(t, handler, func(t *testing.T, r *relay, l *line) {
				var begin time.Time
				tt.lose(t, r, func() {
					l.cut()
					begin = time.Now()
				})
				took := time.Since(begin)
				t.Log("noticed after", took)
				if took < least || took > longest {
					t.Errorf("noticed after %s, want %s", took, testInterval)
				}
				if tt.log != "" {
					r.logged(t, tt.log)
				}
			})
		})
	}
}

// TestHalfClose: the client's FIN arrives at home, which answers after it.
func TestHalfClose(t *testing.T) {
	overStacks(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			switchProtocols(t, w, func(conn net.Conn, reader io.Reader) {
				n, err := io.Copy(io.Discard, reader)
				fmt.Fprintf(conn, "%d bytes, %v", n, err)
			})
		}
	}, func(t *testing.T, r *relay, _ *line) {
		conn := upgrade(t, r)
		if _, err := io.WriteString(conn, strings.Repeat("x", 1000)); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(conn); err != nil || string(answer) != "1000 bytes, <nil>" {
			t.Errorf("%q, %v", answer, err)
		}
	})
}

// switchProtocols lets use have the connection of a request at home.
func switchProtocols(t *testing.T, w http.ResponseWriter, use func(conn net.Conn, reader io.Reader)) {
	conn, buffer, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	use(conn, buffer)
}

// upgrade is a connection that has left HTTP.
func upgrade(t *testing.T, r *relay) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		upgradesEnd(t)
	})
	_ = conn.SetDeadline(time.Now().Add(longest))
	fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v %v", resp, err)
	}
	return conn.(*net.TCPConn)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
