package l4wireguard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homeward-relay/homeward/modules/internal/relay"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l limiter
		var got []int // what each line says was suppressed
		call := func(times int) {
			for range times {
				l.do(func(suppressed int) { got = append(got, suppressed) })
			}
		}
		expect := func(when string, want ...int) {
			t.Helper()
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: the lines say %v, want %v", when, got, want)
			}
			got = nil
		}
		call(lineBurst + 5)
		expect("at once", make([]int, lineBurst)...)
		time.Sleep(lineInterval)
		call(4)
		expect("a second later", 5)
		time.Sleep(2 * lineInterval)
		call(4)
		expect("two seconds later", 3, 0)
		time.Sleep(time.Hour)
		call(lineBurst + 5)
		expect("an hour later", append([]int{2}, make([]int, lineBurst-1)...)...)
	})
}

// counted reads how often the log says something, and how often it does not because
// there was too much of it.
func (l *logFile) counted(wanted func(line map[string]any) bool) (written, suppressed int) {
	l.t.Helper()
	content, err := os.ReadFile(l.path)
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	for text := range bytes.Lines(content) {
		line := make(map[string]any)
		if json.Unmarshal(text, &line) != nil {
			continue // not yet written to its end
		}
		if wanted(line) {
			written++
			if n, ok := line["suppressed"].(float64); ok {
				suppressed += int(n)
			}
		}
	}
	return written, suppressed
}

func says(message string) func(map[string]any) bool {
	return func(line map[string]any) bool { return line["msg"] == message }
}

// Strangers connect while home refuses: the log stays readable, says how many there
// were, and has the first of everything.
func TestRefusedStreamsLog(t *testing.T) {
	w := newWorld(t)
	w.serveTCP(7, echo)
	port, echoing := testnet.FreePort(t, "tcp"), testnet.FreePort(t, "tcp")
	const server = "127.0.0.1:%s {\nroute {\nwireguard %s\n}\n}\n"
	w.load(fmt.Sprintf(server, "$1", "home:9 home:10")+fmt.Sprintf(server, "$2", "home:7"), port, echoing)
	mustEcho(t, w.dial(echoing), "the tunnel is up")

	attempts := 0
	connect := func() {
		attempts++
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.ECONNRESET) { // as fast as that
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		mustReset(t, c)
	}
	for range 10 * lineBurst {
		connect()
	}
	for _, message := range []string{"no upstream could be dialed", "dialing upstream, trying the next"} {
		// As many as there were strangers, within what is left out and said.
		testnet.Eventually(t, 30*time.Second, func() error {
			written, suppressed := w.lines.counted(says(message))
			if suppressed > 0 && written+suppressed == attempts {
				return nil
			}
			connect() // which brings a line once there may be one
			return fmt.Errorf("%q: %d lines, which say that %d were left out, for %d connections", message, written, suppressed, attempts)
		})
	}
	first := w.lines.next("no upstream could be dialed")
	has(t, first, map[string]any{"level": "error", "remote_ip": "127.0.0.1", "suppressed": nil})
}

// Datagrams from addresses that may all be forged leave few lines, and hide none of
// a client that home answers.
func TestUnansweredFlowsLog(t *testing.T) {
	w := newWorld(t)
	w.serveUDP(7, func(datagram []byte, _ net.Addr) []byte {
		if string(datagram) == "question" {
			return []byte("answer")
		}
		return nil
	})
	port := testnet.FreePort(t, "udp")
	w.load("udp/127.0.0.1:$1 {\nroute {\nwireguard home:7 {\nidle_timeout 1s\n}\n}\n}", port)
	mustExchange(t, w.dialUDP(port), "question", "answer")

	const strangers = 10 * lineBurst
	stranger := func() {
		if _, err := w.dialUDP(port).Write([]byte("nothing")); err != nil {
			t.Fatal(err)
		}
	}
	for range strangers {
		stranger()
	}
	client := w.dialUDP(port)
	mustExchange(t, client, "question", "answer")

	unanswered := func(line map[string]any) bool {
		return says("relayed datagrams")(line) && line["datagrams_written"] == 0.0
	}
	testnet.Eventually(t, 60*time.Second, func() error {
		written, suppressed := w.lines.counted(unanswered)
		// Datagrams get lost, but not most of them.
		if suppressed > 0 && written+suppressed > strangers/2 {
			return nil
		}
		if relay.Flows.Len() == 0 {
			stranger() // which brings a line that says what was left out
		}
		return fmt.Errorf("%d lines, which say that %d were left out, for %d strangers", written, suppressed, strangers)
	})
	testnet.Eventually(t, 30*time.Second, func() error {
		if written, _ := w.lines.counted(func(line map[string]any) bool {
			return line["remote"] == client.LocalAddr().String() && line["datagrams_written"] != 0.0
		}); written == 0 {
			return fmt.Errorf("no line of the client that home has answered")
		}
		return nil
	})
}
