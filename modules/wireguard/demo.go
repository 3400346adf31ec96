package wireguard

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

//go:embed demo/*.Caddyfile
var demoCaddyfiles embed.FS

const (
	// demoStart bounds the wait for the first page through the tunnel.
	demoStart = 60 * time.Second

	// demoStop bounds the wait for a process of the demo to end by itself.
	demoStop = 5 * time.Second

	// demoEcho is how much the demo sends to the echo and expects back.
	demoEcho = 1 << 20
)

func demoCommand() *cobra.Command {
	d := new(demo)
	cmd := &cobra.Command{
		Use:   "demo [--http <port>] [--https <port>] [--tcp <port>] [--once]",
		Short: "Shows a relay and a home on this machine",
		Long: `
Runs a relay and a home on this machine, as two processes of this binary, with
keys made on the spot and a WireGuard tunnel over loopback between them. A web
page at home is then to be had through the relay's ports, and so is a TCP echo.

Nothing is installed and no privilege is needed. Ctrl-C ends both processes and
removes their files.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			d.out = cmd.OutOrStdout()
			return d.run(ctx)
		},
	}
	cmd.Flags().IntVar(&d.HTTP, "http", 8080, "the relay's port for the web page without TLS")
	cmd.Flags().IntVar(&d.HTTPS, "https", 8443, "the relay's port for the web page with TLS")
	cmd.Flags().IntVar(&d.TCP, "tcp", 2022, "the relay's port for the TCP echo")
	cmd.Flags().BoolVar(&d.once, "once", false, "check that everything works, then end")
	return cmd
}

// demo is one run of the demo. Its exported fields are for the Caddyfiles.
type demo struct {
	HTTP, HTTPS, TCP int
	Tunnel           int // UDP port between the two processes
	Dir              string
	HomePublicKey    tunnel.PublicKey
	RelayPublicKey   tunnel.PublicKey

	once bool
	out  io.Writer
}

func (d *demo) run(ctx context.Context) (err error) {
	for _, port := range []int{d.HTTP, d.HTTPS, d.TCP} {
		if err := checkFree(port); err != nil {
			return err
		}
	}
	if d.Dir, err = os.MkdirTemp("", "homeward-demo-"); err != nil {
		return fmt.Errorf("making a folder for the demo's keys: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.Dir)) }()
	if err := d.write(); err != nil {
		return err
	}

	// The kernel ends the children when the thread that started them ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fmt.Fprintln(d.out, "Starting a relay and a home, joined by a WireGuard tunnel over loopback …")
	relay, err := d.start("relay")
	if err != nil {
		return err
	}
	defer relay.stop()
	home, err := d.start("home")
	if err != nil {
		return err
	}
	defer home.stop()

	if err := d.check(ctx, relay, home); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if d.once {
		return nil
	}
	fmt.Fprintf(d.out, `
Try it yourself; every byte goes through the tunnel:

  a web page   http://localhost:%d
               https://localhost:%d   (its certificate was made a moment ago:
                                         curl -k, or accept it in the browser)
  a TCP echo   nc localhost %d

The two configurations are %s
                       and %s
Ctrl-C ends both processes and removes their files.
`, d.HTTP, d.HTTPS, d.TCP, filepath.Join(d.Dir, "relay.Caddyfile"), filepath.Join(d.Dir, "home.Caddyfile"))

	select {
	case <-ctx.Done():
		fmt.Fprintln(d.out, "\nStopping.")
		return nil
	case <-relay.ended:
		return fmt.Errorf("the relay ended:\n%s", relay.output())
	case <-home.ended:
		return fmt.Errorf("the home ended:\n%s", home.output())
	}
}

// checkFree says early and in plain words that a port is taken.
func checkFree(port int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("the demo needs TCP port %d (choose others with --http, --https and --tcp): %w", port, err)
	}
	return listener.Close()
}

// write makes keys and writes both ends' files.
func (d *demo) write() error {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return fmt.Errorf("looking for a free UDP port: %w", err)
	}
	d.Tunnel = udp.LocalAddr().(*net.UDPAddr).Port
	udp.Close()

	relayKey, homeKey := tunnel.NewPrivateKey(), tunnel.NewPrivateKey()
	d.RelayPublicKey, d.HomePublicKey = relayKey.Public(), homeKey.Public()
	files := map[string][]byte{
		"relay.key": []byte(relayKey.Base64() + "\n"),
		"home.key":  []byte(homeKey.Base64() + "\n"),
	}
	for _, name := range []string{"relay.Caddyfile", "home.Caddyfile"} {
		text, err := template.ParseFS(demoCaddyfiles, "demo/"+name)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := text.Execute(&out, d); err != nil {
			return err
		}
		files[name] = out.Bytes()
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(d.Dir, name), content, 0o600); err != nil {
			return fmt.Errorf("writing the demo's files: %w", err)
		}
	}
	return nil
}

// demoProcess is the relay or the home.
type demoProcess struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed once it has ended
}

func (d *demo) start(role string) (*demoProcess, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("looking for this binary: %w", err)
	}
	p := &demoProcess{log: filepath.Join(d.Dir, role+".log"), ended: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("making the %s's log: %w", role, err)
	}
	defer log.Close()
	p.cmd = exec.Command(binary, "run", "--adapter", "caddyfile", "--config", filepath.Join(d.Dir, role+".Caddyfile"))
	p.cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(d.Dir, role), "XDG_DATA_HOME="+filepath.Join(d.Dir, role))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = demoProcessAttributes()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the %s: %w", role, err)
	}
	go func() {
		defer close(p.ended)
		p.cmd.Wait() // its log says more than its exit code
	}()
	return p, nil
}

// stop ends the process and waits for its end.
func (p *demoProcess) stop() {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.cmd.Process.Kill()
	}
	select {
	case <-p.ended:
	case <-time.After(demoStop):
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// output is the end of what the process has logged.
func (p *demoProcess) output() []byte {
	content, _ := os.ReadFile(p.log)
	return content[max(0, len(content)-4096):]
}

// check uses everything once and prints what it sees.
func (d *demo) check(ctx context.Context, relay, home *demoProcess) error {
	client := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			// The relay's certificate is its own authority's.
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
			ForceAttemptHTTP2: true,
		},
	}
	defer client.CloseIdleConnections()

	urls := []string{fmt.Sprintf("http://localhost:%d/", d.HTTP), fmt.Sprintf("https://localhost:%d/", d.HTTPS)}
	begin := time.Now()
	for _, url := range urls {
		if err := d.await(ctx, client, url, relay, home); err != nil {
			return err
		}
	}
	fmt.Fprintf(d.out, "Up after %d ms.\n", time.Since(begin).Milliseconds())

	for _, url := range urls {
		begin := time.Now()
		answer, err := fetch(ctx, client, url)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.out, "  %-24s %s %s, %d bytes from home in %.1f ms\n", url, answer.protocol, answer.status, answer.size, milliseconds(begin))
	}
	begin = time.Now()
	if err := echo(ctx, d.TCP); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "  localhost:%-14d %d KiB sent home and back in %.1f ms\n", d.TCP, demoEcho>>10, milliseconds(begin))
	return nil
}

// await fetches url until that works: the processes need a moment to start,
// to shake hands and to make a certificate.
func (d *demo) await(ctx context.Context, client *http.Client, url string, relay, home *demoProcess) error {
	for deadline := time.Now().Add(demoStart); ; {
		_, err := fetch(ctx, client, url)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no page after %s: %w\nThe relay says:\n%s\nThe home says:\n%s", demoStart, err, relay.output(), home.output())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-relay.ended:
			return fmt.Errorf("the relay ended:\n%s", relay.output())
		case <-home.ended:
			return fmt.Errorf("the home ended:\n%s", home.output())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

type demoAnswer struct {
	protocol, status string
	size             int64
}

func fetch(ctx context.Context, client *http.Client, url string) (answer demoAnswer, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer, err
	}
	response, err := client.Do(request)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	answer.size, err = io.Copy(io.Discard, response.Body)
	if err != nil {
		return answer, err
	}
	answer.protocol, answer.status = response.Proto, response.Status
	if response.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("%s answers %s", url, response.Status)
	}
	return answer, nil
}

// echo sends random bytes to the TCP echo at home and compares what returns.
func echo(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("using the TCP echo: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent := make([]byte, demoEcho)
	rand.Read(sent)
	go conn.Write(sent) // an error shows in what returns
	received := make([]byte, demoEcho)
	if _, err := io.ReadFull(conn, received); err != nil {
		return fmt.Errorf("using the TCP echo: %w", err)
	}
	if !bytes.Equal(sent, received) {
		return errors.New("using the TCP echo: what came back is not what was sent")
	}
	return nil
}
