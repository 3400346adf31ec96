package services

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// SyslogName is the name in the certificate of the syslog server at home.
const SyslogName = "syslog.example.duckdns.org"

// SyslogNG is a syslog-ng at home that takes messages over TLS on port 6514
// (RFC 5425) from clients with a certificate of its CA.
type SyslogNG struct {
	*testnet.Process
	ca        *testnet.CA
	file      string
	namespace *testnet.Namespace
	args      []string
}

// StartSyslogNG starts syslog-ng in a namespace.
func StartSyslogNG(t testing.TB, namespace *testnet.Namespace) *SyslogNG {
	t.Helper()
	testnet.Need(t, "syslog-ng")
	s := &SyslogNG{ca: testnet.NewCA(t, "syslog CA"), namespace: namespace}
	folder := testnet.Folder(t)
	s.file = filepath.Join(folder, "received.log")
	certificate := s.ca.Issue(t, SyslogName)
	config := filepath.Join(folder, "syslog-ng.conf")
	testnet.WriteFile(t, config, fmt.Appendf(nil, `@version: 3.35
options { keep-hostname(yes); use-dns(no); flush-lines(1); };
source tls {
	syslog(transport(tls) port(6514) max-connections(10) log-iw-size(1000) tls(
		key-file(%q) cert-file(%q) ca-file(%q) peer-verify(required-trusted)
	));
};
destination received { file(%q template("${PROGRAM} ${MESSAGE}\n")); };
log { source(tls); destination(received); };
`, certificate.Key, certificate.Cert, s.ca.File, s.file), 0o644)
	s.args = []string{"-F", "--no-caps", "-e",
		"-f", config,
		"-R", filepath.Join(folder, "persist"),
		"-p", filepath.Join(folder, "pid"),
		"-c", filepath.Join(folder, "ctl")}
	s.Start(t)
	return s
}

// Start starts syslog-ng, or starts it again when it was killed. What it has received it keeps.
func (s *SyslogNG) Start(t testing.TB) {
	t.Helper()
	s.Process = testnet.Start(t, "syslog-ng", s.namespace.Command("syslog-ng", s.args...))
	testnet.Eventually(t, 15*time.Second, func() error { return reachable(s.namespace, "127.0.0.1:6514") })
}

// Received lists the messages of a program, in the order in which they came.
func (s *SyslogNG) Received(t testing.TB, program string) []string {
	t.Helper()
	return s.Follow(program).Next(t)
}

// Follow returns the messages of a program from the first one on.
func (s *SyslogNG) Follow(program string) *Messages {
	return &Messages{path: s.file, prefix: program + " "}
}

// Messages are those that a server has received of a program.
type Messages struct {
	path, prefix string
	read         int64 // bytes of the file
}

// Next lists the messages that have come since it was called last, in the order
// in which they came.
func (m *Messages) Next(t testing.TB) (messages []string) {
	t.Helper()
	file, err := os.Open(m.path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.NewSectionReader(file, m.read, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		whole, ended := strings.CutSuffix(line, "\n")
		if !ended {
			break
		}
		m.read += int64(len(line))
		if message, ok := strings.CutPrefix(whole, m.prefix); ok {
			messages = append(messages, message)
		}
	}
	return messages
}

// RsyslogEnv names the folder that rsyslog and its TLS driver are unpacked
// in: their packages conflict with syslog-ng's. tests/run.sh does it.
const RsyslogEnv = "HOMEWARD_RSYSLOG"

// rsyslogFolder is where rsyslog is unpacked; empty if it is installed.
func rsyslogFolder(t testing.TB) string {
	t.Helper()
	if folder := os.Getenv(RsyslogEnv); folder != "" {
		return folder
	}
	if cache, err := os.UserCacheDir(); err == nil {
		folder := filepath.Join(cache, "homeward-tests", "rsyslog")
		if _, err := os.Stat(filepath.Join(folder, "usr/sbin/rsyslogd")); err == nil {
			return folder
		}
	}
	testnet.Need(t, "rsyslogd")
	return ""
}

// Rsyslog is what a rsyslog reads and where it sends that.
type Rsyslog struct {
	// Host is where the server is reached, at port 6514.
	Host string

	// Mode is how the server is authenticated: "x509/name", so that it must be
	// SyslogName, or "x509/certvalid".
	Mode string

	// Program is whose the messages are that are the lines of the file Input.
	Program, Input string

	// Spool is the folder in which messages wait that do not fit into memory
	// while the server takes none. If it is empty they wait in the file.
	Spool string
}

// spoolBegin is how many messages wait in memory before more of them go to
// disk: a second or two of a busy program's, so that an outage needs the disk.
const spoolBegin = 500

// queue is the queue of the action that sends.
func (r *Rsyslog) queue() string {
	if r.Spool == "" {
		return ""
	}
	return fmt.Sprintf(`queue.type="LinkedList" queue.filename="forward" queue.spoolDirectory=%q
		queue.size="%d" queue.highWatermark="%d" queue.lowWatermark="%d" queue.maxDiskSpace="1g" queue.saveOnShutdown="on"`,
		r.Spool, 2*spoolBegin, spoolBegin, spoolBegin/5)
}

// StartRsyslog starts a rsyslog in a namespace that sends what it reads over
// mutual TLS, and tries for ever.
func StartRsyslog(t testing.TB, namespace *testnet.Namespace, server *SyslogNG, r Rsyslog) *testnet.Process {
	t.Helper()
	unpacked := rsyslogFolder(t)
	folder := testnet.Folder(t)
	certificate := server.ca.Issue(t, "client.example.duckdns.org")
	libraries := "/usr/lib"
	binary := "rsyslogd"
	if unpacked != "" {
		found, _ := filepath.Glob(filepath.Join(unpacked, "usr/lib/*-linux-gnu*"))
		if len(found) != 1 {
			t.Fatalf("no libraries in %s", unpacked)
		}
		libraries = found[0]
		binary = filepath.Join(unpacked, "usr/sbin/rsyslogd")
	} else if found, _ := filepath.Glob("/usr/lib/*-linux-gnu*/rsyslog"); len(found) > 0 {
		libraries = filepath.Dir(found[0])
	}
	permitted := ""
	if r.Mode == "x509/name" {
		permitted = fmt.Sprintf("StreamDriverPermittedPeers=%q", SyslogName)
	}
	config := filepath.Join(folder, "rsyslog.conf")
	testnet.WriteFile(t, config, fmt.Appendf(nil, `
global(
	workDirectory=%q
	defaultNetstreamDriver="gtls"
	defaultNetstreamDriverCAFile=%q
	defaultNetstreamDriverCertFile=%q
	defaultNetstreamDriverKeyFile=%q
)
module(load="imfile" mode="inotify")
input(type="imfile" file=%q tag="%s:" ruleset="out")
ruleset(name="out") {
	action(type="omfwd" target=%q port="6514" protocol="tcp"
		TCP_Framing="octet-counted" template="RSYSLOG_SyslogProtocol23Format"
		StreamDriver="gtls" StreamDriverMode="1" StreamDriverAuthMode=%q %s
		action.resumeRetryCount="-1" action.resumeInterval="1"
		%s)
}
`, folder, server.ca.File, certificate.Cert, certificate.Key, r.Input, r.Program, r.Host, r.Mode, permitted, r.queue()), 0o644)

	cmd := namespace.Command(binary, "-n", "-f", config,
		"-i", filepath.Join(folder, "pid"),
		"-M", filepath.Join(libraries, "rsyslog"))
	cmd.Env = append(cmd.Environ(), "LD_LIBRARY_PATH="+libraries)
	return testnet.Start(t, "rsyslog", cmd)
}
