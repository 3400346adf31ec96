package kernelns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// environmentEnv makes the test binary a program in one of environments, by
// the name that it has. It has two lives: as root it makes the environment,
// and in it, it runs again as the user that is wanted and tries a stack.
const (
	environmentEnv = "HOMEWARD_TEST_ENVIRONMENT"
	tryEnv         = "HOMEWARD_TEST_TRY"
)

const (
	testNobody        = 65534
	capNetBindService = 10
)

// environment is a place for a program that wants a stack.
type environment struct {
	name string

	// user are the ids of a user namespace that the environment has to itself.
	// If empty, it is in the one of the test.
	user []syscall.SysProcIDMap

	// prepare changes what is around the program: its mounts, which are its
	// own, its sysctls, its thread's rights.
	prepare func() error

	// binary makes the program's file. If nil, it is the test's own.
	binary func(t *testing.T) string

	uid     uint32
	ambient []uintptr

	// replaced is whether the program's file is replaced and deleted while it
	// has a stack.
	replaced bool

	// holder is the user of the holders, as the environment numbers it.
	holder uint32

	// bounding are the capabilities that their bounding set is left with.
	bounding uint64

	// addresses are the stack's; testAddresses if there are none.
	addresses []netip.Prefix

	// up is for how long the host is up; an hour if it is 0.
	up time.Duration

	// later is what happens after the first attempt.
	later func() error

	// attempts is how often a stack is tried to be made; once if it is
	// 0.
	attempts int

	// want is in the error. If empty, there is a stack.
	want string
}

// several is more than one.
const several = -1

// container is the user namespace of a container, with all users that a
// program expects.
var container = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}

var environments = []environment{
	{name: "nobody", uid: testNobody, holder: testNobody},
	{name: "root"},
	{name: "ambient capability", uid: testNobody, ambient: []uintptr{capNetBindService}, holder: testNobody},
	{name: "no new privileges", prepare: noNewPrivileges, uid: testNobody, holder: testNobody},
	{name: "file capability", binary: copyWithCapability, uid: testNobody, holder: testNobody, bounding: 1 << capNetBindService},
	{name: "executable replaced", binary: copyOfBinary, uid: testNobody, replaced: true, holder: testNobody},
	{name: "read-only sysctls", prepare: readOnly("/proc/sys"), uid: testNobody, holder: testNobody},
	{name: "proc without sysctls and others' processes", prepare: bareProc, uid: testNobody, holder: testNobody},
	{name: "no IPv6", prepare: forbidFamily(unix.AF_INET6), uid: testNobody, holder: testNobody, addresses: testAddresses[:1]},
	{name: "nested", user: container, uid: testNobody, holder: testNobody},
	{name: "nested with few users", user: []syscall.SysProcIDMap{{ContainerID: testNobody, HostID: testNobody, Size: 1}}, uid: testNobody, holder: testNobody},

	// Root with every capability may do without a user namespace.
	{name: "no user namespaces, root", user: container, prepare: sysctl("user/max_user_namespaces", "0"), holder: testNobody},
	{
		name: "no user namespaces, a user's container's root",
		user: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}},
		// Its users cannot enter the folders of the test's.
		binary:  copyOfBinary,
		prepare: sysctl("user/max_user_namespaces", "0"), holder: testNobody,
	},
	{
		name:    "no user namespaces, root without a nobody",
		user:    []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1000}},
		prepare: sysctl("user/max_user_namespaces", "0"),
	},
	{name: "seccomp forbids user namespaces, root", prepare: forbidUserNamespaces(false), holder: testNobody},

	{
		name: "no user namespaces", user: container, prepare: sysctl("user/max_user_namespaces", "0"), uid: testNobody,
		want: "user.max_user_namespaces is 0; raise it",
	},
	{
		name: "no network namespaces", user: container, prepare: sysctl("user/max_net_namespaces", "0"), uid: testNobody,
		want: "user.max_net_namespaces is 0; raise it",
	},
	{
		name: "network namespaces used up", user: container, prepare: useUpNamespaces,
		want: "limit of namespaces is reached",
	},
	{
		name: "seccomp forbids user namespaces", prepare: forbidUserNamespaces(false), uid: testNobody,
		want: "forbids user namespaces; the table of environments",
	},
	{
		name: "seccomp of Docker", prepare: dockersRoot,
		want: "forbids user namespaces; the table of environments",
	},
	{name: "no netlink", prepare: forbidFamily(unix.AF_NETLINK), uid: testNobody, want: "RestrictAddressFamilies=AF_NETLINK"},
	{name: "no TUN", prepare: devices(""), uid: testNobody, want: "there is no /dev/net/tun; load the module"},
	{name: "TUN of root's", prepare: devices("c 10 200 0600"), uid: testNobody, want: "/dev/net/tun may not be opened; allow it"},
	{name: "TUN without a driver", prepare: devices("c 10 199 0666"), uid: testNobody, want: "modprobe tun"},

	// On a host that is starting.
	{name: "a driver that comes later", prepare: devices("c 10 199 0666"), up: time.Minute, later: replaceTUN("c 10 200 0666"), attempts: 2},
	{
		name:    "a driver that comes later, no user namespaces, root",
		prepare: func() error { return errors.Join(devices("c 10 199 0666")(), forbidUserNamespaces(false)()) },
		up:      time.Minute, later: replaceTUN("c 10 200 0666"), attempts: 2, holder: testNobody,
	},
	{
		name: "a driver that is given up", prepare: devices("c 10 199 0666"), up: time.Minute,
		later: func() error { return os.Remove("/dev/net/tun") }, attempts: 2, want: "tried 2 times: there is no /dev/net/tun",
	},
	{
		name: "a driver that never comes", prepare: devices("c 10 199 0666"), up: time.Minute, uid: testNobody, attempts: several,
		want: "times; what is in the way may pass, restart Caddy to try again: the kernel has no TUN driver",
	},
	{name: "no TUN in a container's own folder", prepare: devices(""), up: time.Minute, uid: testNobody, want: "there is no /dev/net/tun; load the module"},
	{name: "no user namespaces at the start", user: container, prepare: sysctl("user/max_user_namespaces", "0"), up: time.Minute, uid: testNobody, want: "user.max_user_namespaces is 0; raise it"},
}

// report is what a program in an environment found.
type report struct {
	Error    string
	Attempts int
	Took     time.Duration // to make the stack, or to know that there is none
	Filtered bool
	Holders  []holderReport
}

type holderReport struct{ UID, Effective, Bounding string }

// TestEnvironments makes a stack wherever Caddy may have to run, and where it
// cannot be had looks at the reason.
func TestEnvironments(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: needs root to make environments")
	}
	for _, e := range environments {
		t.Run(e.name, func(t *testing.T) {
			got := e.run(t)
			t.Logf("it took %v", got.Took)
			if want := cmp.Or(e.attempts, 1); got.Attempts != want && (want != several || got.Attempts < 2) {
				t.Errorf("it was tried %d times, want %d", got.Attempts, want)
			}
			if e.want != "" {
				if !strings.Contains(got.Error, e.want) {
					t.Errorf("error is %q, want %q in it", got.Error, e.want)
				}
				t.Log(got.Error)
				return
			}
			if got.Error != "" {
				t.Fatal(got.Error)
			}
			if !got.Filtered || len(got.Holders) != 2 {
				t.Errorf("filter in force: %v, holders: %v", got.Filtered, got.Holders)
			}
			want := holderReport{strconv.Itoa(int(e.holder)), "0000000000000000", fmt.Sprintf("%016x", e.bounding)}
			for _, h := range got.Holders {
				if h != want {
					t.Errorf("a holder has %v, want %v", h, want)
				}
			}
		})
	}
}

func (e environment) run(t *testing.T) report {
	t.Helper()
	binary := "/proc/self/exe"
	if e.binary != nil {
		binary = e.binary(t)
	}
	var out, errs strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary)
	cmd.Dir = "/"
	// The race detector would sleep a second at each exit.
	cmd.Env = []string{environmentEnv + "=" + e.name, "GORACE=atexit_sleep_ms=0"}
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Setpgid: true}
	if e.user != nil {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = e.user, e.user
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		first := uint32(e.user[0].ContainerID)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: first, Gid: first}
	}
	err := cmd.Run()
	var r report
	if err != nil || json.Unmarshal([]byte(out.String()), &r) != nil {
		t.Fatalf("%v\n%s%s", err, &out, &errs)
	}
	return r
}

// enterEnvironment is main in an environment.
func enterEnvironment(name string) {
	for _, e := range environments {
		if e.name != name {
			continue
		}
		if os.Getenv(tryEnv) != "" {
			_ = json.NewEncoder(os.Stdout).Encode(e.try())
			os.Exit(0)
		}
		if err := e.become(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "no environment is called", name)
	os.Exit(1)
}

// become makes the environment and runs the program in it.
func (e environment) become() error {
	// Some rights are a thread's, which the program inherits.
	lockForGood()
	if e.prepare != nil {
		if err := e.prepare(); err != nil {
			return fmt.Errorf("preparing the environment: %w", err)
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), tryEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if e.uid != uint32(os.Getuid()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: e.uid, Gid: e.uid},
			AmbientCaps: e.ambient,
		}
	}
	return cmd.Run()
}

// try makes a stack and uses it, before and after a holder has been killed.
func (e environment) try() (r report) {
	failed := func(err error) report {
		r.Error = err.Error()
		return r
	}
	addresses := e.addresses
	if addresses == nil {
		addresses = testAddresses
	}
	up := cmp.Or(e.up, time.Hour)
	sinceBoot = func() time.Duration { return up }
	r.Attempts = 1
	began := time.Now()
	stack, err := New(Config{Name: "wg0", MTU: 1420, Addresses: addresses, Logger: hears("trying again", func() error {
		r.Attempts++
		if r.Attempts == 2 && e.later != nil {
			return e.later()
		}
		return nil
	})})
	r.Took = time.Since(began)
	if err != nil {
		return failed(err)
	}
	s := stack.(*Stack)
	defer s.Close()
	if err := useStack(s); err != nil {
		return failed(err)
	}
	if e.replaced {
		if err := replaceBinary(); err != nil {
			return failed(err)
		}
	}
	former := holders(s)
	if err := syscall.Kill(former[0], syscall.SIGKILL); err != nil {
		return failed(fmt.Errorf("killing a holder: %w", err))
	}
	deadline := time.Now().Add(20 * time.Second)
	for now := holders(s); len(now) != 2 || now[0] == former[0] || now[1] == former[0]; now = holders(s) {
		if time.Now().After(deadline) {
			return failed(errors.New("the killed holder has no successor"))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := useStack(s); err != nil {
		return failed(fmt.Errorf("after a holder was killed: %w", err))
	}
	r.Filtered = s.place.Load().filtered
	for _, pid := range holders(s) {
		h, err := lookAtHolder(pid)
		if err != nil {
			return failed(err)
		}
		r.Holders = append(r.Holders, h)
	}
	return r
}

// hears is a logger that calls a function for each line with a text.
func hears(text string, heard func() error) *zap.Logger {
	core, _ := observer.New(zap.InfoLevel)
	return zap.New(core, zap.Hooks(func(line zapcore.Entry) error {
		if !strings.Contains(line.Message, text) {
			return nil
		}
		return heard()
	}))
}

// useStack makes more connections than there are blank sockets in stock.
func useStack(s *Stack) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	addresses := *s.addresses.Load()
	for _, address := range append([]netip.Prefix{{}}, addresses...) {
		local := netip.AddrPortFrom(address.Addr(), 0)
		if !address.IsValid() {
			local = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
			address = addresses[0]
		}
		listener, err := s.ListenTCP(local)
		if err != nil {
			return err
		}
		defer listener.Close()
		to := netip.AddrPortFrom(address.Addr(), listener.Addr().(*net.TCPAddr).AddrPort().Port())
		for range 2 * blanksKept {
			conn, err := s.DialTCP(ctx, netip.AddrPort{}, to)
			if err != nil {
				return err
			}
			conn.Close()
		}
	}
	client := netip.MustParseAddrPort("203.0.113.5:4000")
	conn, err := s.DialUDP(ctx, client, netip.MustParseAddrPort("10.77.0.2:9"))
	if err != nil {
		return fmt.Errorf("dialing with a client's address: %w", err)
	}
	return conn.Close()
}

func lookAtHolder(pid int) (holderReport, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return holderReport{}, err
	}
	field := func(name string) string {
		_, after, _ := strings.Cut(string(status), "\n"+name+":")
		if fields := strings.Fields(after); len(fields) > 0 {
			return fields[0]
		}
		return ""
	}
	return holderReport{field("Uid"), field("CapEff"), field("CapBnd")}, nil
}
