package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The two ends of BenchmarkRelay are processes of their own, so that what this
// process burns is what the relay does.
const roleVariable = "RELAY_BENCHMARK_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch role, rest, _ := strings.Cut(os.Getenv(roleVariable), " "); role {
	case "sender":
		err = benchmarkSender(rest)
	case "receiver":
		err = benchmarkReceiver()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// benchmarkSender opens connections to an address, is told how much each of
// them sends, and ends when all were received.
func benchmarkSender(arguments string) error {
	address, number, _ := strings.Cut(arguments, " ")
	connections, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	conns := make([]net.Conn, connections)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", address); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	var each int
	if _, err := fmt.Scan(&each); err != nil {
		return err
	}
	failed := make(chan error, connections)
	for _, c := range conns {
		go func() {
			block := make([]byte, 64<<10)
			for left := each; left > 0; {
				n, err := c.Write(block[:min(left, len(block))])
				if err != nil {
					failed <- err
					return
				}
				left -= n
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				failed <- err
				return
			}
			_, err := io.Copy(io.Discard, c)
			failed <- err
		}()
	}
	for range conns {
		if err := <-failed; err != nil {
			return err
		}
	}
	fmt.Println("done")
	return nil
}

// benchmarkReceiver says where it listens, and throws away what it receives
// until its standard input ends.
func benchmarkReceiver() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go serve(ln.(*net.TCPListener), func(c *net.TCPConn) {
		defer c.Close()
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// child is one end of a benchmark.
type child struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(b *testing.B, role string) *child {
	b.Helper()
	executable, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	command := exec.Command(executable)
	command.Env = append(os.Environ(), roleVariable+"="+role)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		if err := command.Wait(); err != nil {
			b.Errorf("%s: %v", role, err)
		}
	})
	return &child{in, bufio.NewReader(out)}
}

func (c *child) says(b *testing.B) string {
	b.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func relayBySplicing(client, upstream *net.TCPConn) { NewStream(client, upstream, 0).Run() }

func relayByCopying(client, upstream *net.TCPConn) {
	NewStream(opaque{client}, opaque{upstream}, 0).Run()
}

func relayByIOCopy(client, upstream *net.TCPConn) {
	defer client.Close()
	defer upstream.Close()
	var both sync.WaitGroup
	half := func(dst, src *net.TCPConn) {
		_, _ = io.Copy(dst, src)
		_ = dst.CloseWrite()
	}
	both.Go(func() { half(upstream, client) })
	both.Go(func() { half(client, upstream) })
	both.Wait()
}

var ways = []struct {
	name string
	run  func(client, upstream *net.TCPConn)
}{
	{"pump", relayByCopying},
	{"io.Copy", relayByIOCopy},
	{"splice", relayBySplicing},
}

// BenchmarkRoundTrip is a small request and its answer, with the two ends in
// this process.
func BenchmarkRoundTrip(b *testing.B) {
	for _, way := range ways {
		b.Run(way.name, func(b *testing.B) {
			client, down := pair(b)
			up, upstream := pair(b)
			go way.run(down, up)
			go func() { _, _ = io.Copy(struct{ io.Writer }{upstream}, struct{ io.Reader }{upstream}) }()
			message := make([]byte, 100)
			before := cpu()
			for b.Loop() {
				if _, err := client.Write(message); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, message); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(b.N), "CPU-ns/op")
		})
	}
}

// BenchmarkRelay is the throughput of many connections from one process to
// another, and what the relay in between costs. An operation is a MiB.
func BenchmarkRelay(b *testing.B) {
	for _, connections := range []int{1, 5, 200, 1000} {
		for _, way := range ways {
			b.Run(fmt.Sprintf("%d/%s", connections, way.name), func(b *testing.B) {
				benchmarkRelay(b, connections, way.run)
			})
		}
	}
}

func benchmarkRelay(b *testing.B, connections int, run func(client, upstream *net.TCPConn)) {
	home := startChild(b, "receiver").says(b)
	public := listen(b)
	var running sync.WaitGroup
	var dialed sync.WaitGroup
	dialed.Add(connections)
	go serve(public, func(c *net.TCPConn) {
		up, err := net.Dial("tcp", home)
		if err != nil {
			b.Error(err)
			c.Close()
			return
		}
		running.Add(1)
		dialed.Done()
		run(c, up.(*net.TCPConn))
		running.Done()
	})
	sender := startChild(b, fmt.Sprintf("sender %s %d", public.Addr(), connections))
	sender.says(b)
	dialed.Wait()

	each := max(b.N<<20/connections, 1)
	before := cpu()
	b.ResetTimer()
	if _, err := fmt.Fprintln(sender.in, each); err != nil {
		b.Fatal(err)
	}
	if end := sender.says(b); end != "done" {
		b.Fatal(end)
	}
	b.StopTimer()
	total := float64(each) * float64(connections)
	b.ReportMetric(total*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
	b.ReportMetric((cpu()-before).Seconds()/(total/(1<<30)), "CPU-s/GiB")
	b.ReportMetric(0, "ns/op")
	running.Wait()
}

// cpu returns what this process has burnt.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
