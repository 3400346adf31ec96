package testnet

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Namespace is one machine of a test's internet: a network namespace with
// its own names for hosts.
type Namespace struct {
	// Name is the namespace's name for `ip netns`.
	Name string

	file *os.File

	mu    sync.Mutex // guards what follows
	hosts map[string]string
	env   []string // as os.Environ
}

// NewNamespace makes a network namespace whose loopback interface is up. It
// is removed with the test, and the processes in it are killed then.
func NewNamespace(t testing.TB, role string) *Namespace {
	t.Helper()
	return newNamespace(t, nextNumber(), role)
}

func newNamespace(t testing.TB, number int, role string) *Namespace {
	t.Helper()
	Need(t, "ip")
	n := &Namespace{
		Name:  fmt.Sprintf("%s%d-%d-%s", namePrefix, os.Getpid(), number, role),
		hosts: map[string]string{"localhost": "127.0.0.1"},
	}
	Run(t, "ip", "netns", "add", n.Name)
	t.Cleanup(func() {
		if n.file != nil {
			n.file.Close()
		}
		removeNamespace(n.Name)
	})
	file, err := os.Open("/run/netns/" + n.Name)
	if err != nil {
		t.Fatal(err)
	}
	n.file = file
	// Duplicate address detection would keep IPv6 silent for two seconds.
	n.Sysctl(t, "net.ipv6.conf.default.accept_dad", "0")
	n.IP(t, "link set lo up")
	n.SetHosts(t, nil)
	return n
}

// removeNamespace kills what runs in a namespace and removes it.
func removeNamespace(name string) {
	for _, pid := range namespacePIDs(name) {
		unix.Kill(pid, unix.SIGKILL)
	}
	exec.Command("ip", "netns", "del", name).Run()
	os.RemoveAll(filepath.Join("/etc/netns", name))
}

func namespacePIDs(name string) []int {
	out, err := exec.Command("ip", "netns", "pids", name).Output()
	if err != nil {
		return nil
	}
	var pids []int
	for _, word := range strings.Fields(string(out)) {
		// The test process itself is listed while one of its threads is inside.
		if pid, err := strconv.Atoi(word); err == nil && pid > 1 && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// IP runs commands of ip(8) in the namespace, such as "link set lo up".
func (n *Namespace) IP(t testing.TB, commands ...string) {
	t.Helper()
	cmd := exec.Command("ip", "-netns", n.Name, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip in %s: %v\n%s\n%s", n.Name, err, strings.Join(commands, "\n"), out)
	}
}

// SetHosts adds to the namespace's /etc/hosts: names to addresses. Programs
// that run in the namespace see it, and so does Dial. They see no DNS server.
func (n *Namespace) SetHosts(t testing.TB, hosts map[string]string) {
	t.Helper()
	var text bytes.Buffer
	n.mu.Lock()
	maps.Copy(n.hosts, hosts)
	for name, address := range n.hosts {
		fmt.Fprintf(&text, "%s %s\n", address, name)
	}
	n.mu.Unlock()
	n.writeNames(t, text.Bytes(), "# no DNS in this test\n")
}

// LoseNames takes the names from the programs in the namespace: /etc/hosts has only
// localhost, and the one DNS server, whose address is given, is none.
// The next SetHosts, of nothing new as well, gives them back. Dial knows them as
// before.
func (n *Namespace) LoseNames(t testing.TB, server string) {
	t.Helper()
	n.writeNames(t, []byte("127.0.0.1 localhost\n"), "nameserver "+server+"\n")
}

// writeNames writes the files that the namespace's programs find in /etc. They are
// written in place, since programs that run have them mounted.
func (n *Namespace) writeNames(t testing.TB, hosts []byte, resolver string) {
	t.Helper()
	folder := filepath.Join("/etc/netns", n.Name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	WriteFile(t, filepath.Join(folder, "hosts"), hosts, 0o644)
	WriteFile(t, filepath.Join(folder, "resolv.conf"), []byte(resolver), 0o644)
}

// Sysctl sets a kernel parameter of the namespace, such as
// "net.ipv4.ip_forward".
func (n *Namespace) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
	if err != nil {
		t.Fatalf("setting %s=%s in %s: %v", name, value, n.Name, err)
	}
}

// NFT loads rules of nft(8) into the namespace.
func (n *Namespace) NFT(t testing.TB, rules string) {
	t.Helper()
	cmd := n.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft in %s: %v\n%s", n.Name, err, out)
	}
}

// Setenv sets an environment variable for the programs that are started in the
// namespace from now on.
func (n *Namespace) Setenv(name, value string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.env = append(n.env, name+"="+value)
}

// setEnvironment gives a command what Setenv has set.
func (n *Namespace) setEnvironment(cmd *exec.Cmd) *exec.Cmd {
	n.mu.Lock()
	defer n.mu.Unlock()
	cmd.Env = append(os.Environ(), n.env...)
	return cmd
}

// Command prepares a command that runs in the namespace as root.
func (n *Namespace) Command(name string, args ...string) *exec.Cmd {
	return n.setEnvironment(exec.Command("ip", n.exec(name, args)...))
}

// CommandContext is Command with an end: it is killed when ctx is done.
func (n *Namespace) CommandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	return n.setEnvironment(exec.CommandContext(ctx, "ip", n.exec(name, args)...))
}

func (n *Namespace) exec(name string, args []string) []string {
	if path, err := Program(name); err == nil {
		name = path
	}
	return slices.Concat([]string{"netns", "exec", n.Name, name}, args)
}

// Output runs a command in the namespace and returns what it prints. The test
// ends if it fails or takes longer than a minute.
func (n *Namespace) Output(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &out, &errs)
	}
	return out.String()
}

// Do calls f on a thread that is in the namespace. Sockets that f makes stay
// in it; goroutines that f starts do not.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		outside, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer outside.Close()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering %s: %w", n.Name, err)
			return
		}
		err = f()
		// A thread that cannot go back stays locked and ends here.
		if unix.Setns(int(outside.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Dial connects from the namespace. A host is a name of its /etc/hosts or an
// address.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	address, err = n.resolve(address)
	if err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Address is what SetHosts has given to a name, or the name itself.
func (n *Namespace) Address(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if known, ok := n.hosts[name]; ok {
		return known
	}
	return name
}

func (n *Namespace) resolve(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	host = n.Address(host)
	if host != "" && net.ParseIP(host) == nil {
		// The resolver would ask from a thread outside of the namespace.
		return "", fmt.Errorf("no address for %s in %s", host, n.Name)
	}
	return net.JoinHostPort(host, port), nil
}

// Listen listens in the namespace; the listener is closed with the test.
func (n *Namespace) Listen(t testing.TB, network, address string) (listener net.Listener) {
	t.Helper()
	err := n.Do(func() (err error) {
		listener, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		t.Fatalf("listening in %s: %v", n.Name, err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// ListenPacket opens a UDP socket in the namespace; it is closed with the
// test.
func (n *Namespace) ListenPacket(t testing.TB, network, address string) (conn *net.UDPConn) {
	t.Helper()
	err := n.Do(func() error {
		packetConn, err := net.ListenPacket(network, address)
		if err == nil {
			conn = packetConn.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		t.Fatalf("listening in %s: %v", n.Name, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// HTTPTransport is a transport whose connections begin in the namespace. The
// caller may change it; it is closed with the test.
func (n *Namespace) HTTPTransport(t testing.TB) *http.Transport {
	t.Helper()
	transport := &http.Transport{
		DialContext:       n.Dial,
		ForceAttemptHTTP2: true,
		MaxIdleConns:      16,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// Run runs a command outside of all namespaces. The test ends if it fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// WriteFile writes a file. The test ends if it cannot.
func WriteFile(t testing.TB, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
}
