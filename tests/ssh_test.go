package tests

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestSSH(t *testing.T) {
	w := newWorld(t)
	server := services.StartSSH(t, w.Home)
	w.start(t, w.ports(t))

	t.Run("login", func(t *testing.T) {
		login(t, w, server)
		w.relay.WaitLog(t, 0, `relayed connection.*`+testnet.ClientIP+`.*home:22`, 5*time.Second)
	})

	t.Run("copy", func(t *testing.T) {
		folder := testnet.Folder(t)
		there, back := filepath.Join(folder, "there"), filepath.Join(folder, "back")
		source := filepath.Join(folder, "source")
		stream := services.NewStream(1, 16<<20)
		file, err := os.Create(source)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(file, stream); err != nil {
			t.Fatal(err)
		}
		file.Close()

		remote := "root@" + testnet.Endpoint + ":" + there
		for _, way := range [][2]string{{source, remote}, {remote, back}} {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if out, err := server.Copy(ctx, w.Client, "2022", way[0], way[1]).CombinedOutput(); err != nil {
				t.Fatalf("scp %s %s: %v\n%s", way[0], way[1], err, out)
			}
		}
		for _, path := range []string{there, back} {
			if got := sumFile(t, path); got != stream.Sum() {
				t.Errorf("%s has hash %s, want %s", path, got, stream.Sum())
			}
		}
	})

	// A terminal with a program that draws on it, as people work with.
	t.Run("tmux", func(t *testing.T) {
		testnet.Need(t, "tmux")
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cmd := server.Terminal(ctx, w.Client, testnet.Endpoint, "2022",
			"TERM=xterm tmux -f /dev/null -S "+filepath.Join(server.Folder, "tmux")+" new-session 'read line; echo got:$line; read line'")
		keyboard, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		terminal := testnet.Start(t, "ssh", cmd)
		terminal.WaitLog(t, 0, `\[0\]`, 15*time.Second) // tmux's status line
		io.WriteString(keyboard, "hello\r")
		terminal.WaitLog(t, 0, `got:hello`, 15*time.Second)
		io.WriteString(keyboard, "\r")
		<-terminal.Exited()
	})

	t.Run("20 logins at once", func(t *testing.T) {
		before := server.Logins()
		var logins sync.WaitGroup
		for range 20 {
			logins.Go(func() { login(t, w, server) })
		}
		logins.Wait()
		// sshd's log may come later than its answer.
		testnet.Eventually(t, 5*time.Second, func() error {
			if got := server.Logins() - before; got != 20 {
				return fmt.Errorf("sshd accepted %d logins", got)
			}
			return nil
		})
	})
}

// login runs a command at home by ssh through the relay.
func login(t *testing.T, w *world, server *services.SSH) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// What the command prints can only come from the home's namespace.
	out, err := server.Login(ctx, w.Client, testnet.Endpoint, "2022", "ip", "-o", "addr", "show", "eth0").CombinedOutput()
	if err != nil {
		t.Errorf("logging in: %v\n%s", err, out)
	} else if want := testnet.HomeLANIP; !strings.Contains(string(out), want) {
		t.Errorf("logged in to a machine without the address %s:\n%s", want, out)
	}
}

// sumFile is the hash of a file, as Stream.Sum.
func sumFile(t testing.TB, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sum, _, err := services.SumReader(file)
	if err != nil {
		t.Fatal(fmt.Errorf("reading %s: %w", path, err))
	}
	return sum
}
