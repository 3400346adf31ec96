package services

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// SSH is an OpenSSH server at home and all that a client needs to log in.
type SSH struct {
	*testnet.Process

	// Folder may be used by both ends: they share the machine's files.
	Folder string
}

// StartSSH starts sshd on port 22 of a namespace.
func StartSSH(t testing.TB, namespace *testnet.Namespace) *SSH {
	t.Helper()
	testnet.Need(t, "sshd", "ssh", "scp", "ssh-keygen")
	s := &SSH{Folder: testnet.Folder(t)}
	for _, key := range []string{"host", "user"} {
		testnet.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.Folder, key))
	}
	// sshd insists on its folder for privilege separation.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	sshd, err := testnet.Program("sshd")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(s.Folder, "sshd_config")
	testnet.WriteFile(t, config, fmt.Appendf(nil, `
Port 22
HostKey %[1]s/host
AuthorizedKeysFile %[1]s/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
PrintLastLog no
UseDNS no
MaxStartups 100:30:200
LogLevel VERBOSE
# Not what the machine's user has in ~/.bashrc, which bash reads for sshd.
SetEnv HOME=%[1]s
Subsystem sftp internal-sftp
`, s.Folder), 0o644)

	hostKey, err := os.ReadFile(filepath.Join(s.Folder, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	testnet.WriteFile(t, filepath.Join(s.Folder, "known_hosts"),
		fmt.Appendf(nil, "home %s", hostKey), 0o644)

	s.Process = testnet.Start(t, "sshd", namespace.Command(sshd, "-D", "-e", "-f", config))
	s.WaitLog(t, 0, "Server listening on 0.0.0.0 port 22", 10*time.Second)
	return s
}

// Login prepares an ssh command from a namespace to host, on a port, with
// home's key known and no question asked. With arguments it runs a command
// there.
func (s *SSH) Login(ctx context.Context, from *testnet.Namespace, host, port string, command ...string) *exec.Cmd {
	args := append(s.options(), "-p", port, "root@"+host)
	return from.CommandContext(ctx, "ssh", append(args, command...)...)
}

// Terminal is Login with a terminal at home, whatever stdin is here.
func (s *SSH) Terminal(ctx context.Context, from *testnet.Namespace, host, port string, command ...string) *exec.Cmd {
	args := append(s.options(), "-tt", "-p", port, "root@"+host)
	return from.CommandContext(ctx, "ssh", append(args, command...)...)
}

// Copy prepares an scp command with the same options.
func (s *SSH) Copy(ctx context.Context, from *testnet.Namespace, port, source, target string) *exec.Cmd {
	return from.CommandContext(ctx, "scp", append(s.options(), "-P", port, source, target)...)
}

func (s *SSH) options() []string {
	var args []string
	for _, option := range []string{
		"BatchMode=yes", "IdentitiesOnly=yes", "HostKeyAlias=home", "StrictHostKeyChecking=yes",
		"ConnectTimeout=15", "LogLevel=ERROR",
		"UserKnownHostsFile=" + filepath.Join(s.Folder, "known_hosts"),
		"IdentityFile=" + filepath.Join(s.Folder, "user"),
	} {
		args = append(args, "-o", option)
	}
	return append([]string{"-F", "none"}, args...)
}

// Logins counts the logins that sshd has accepted, each with the address it
// came from.
func (s *SSH) Logins() int {
	return strings.Count(s.Log.String(), "Accepted publickey for root from")
}
