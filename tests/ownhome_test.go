package tests

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// Stand-ins in the examples for homes.
const (
	exampleRelayKey = "RELAYS-PUBLIC-KEY-GOES-HERE"
	exampleDNS01    = "	tls {\n		dns duckdns {env.DUCKDNS_TOKEN}\n	}\n"
)

// newOwnHome prepares our binary as home's end of the tunnel, as nobody and
// without any capability, and takes the relay's capability as well.
func newOwnHome(t testing.TB, w *world) *testnet.Relay {
	t.Helper()
	own := testnet.NewRelay(t, w.Home)
	own.Secret(t, "wg0.key", w.keys.Home.Private)
	own.DropAll(t)
	w.relay.DropAll(t)
	return own
}

// ownExample is one of caddyfile-examples for a home, as it is but for keys and
// paths, and with certificates of a CA from files.
func (w *world) ownExample(t testing.TB, own *testnet.Relay, name string, ca *testnet.CA, values map[string]string) string {
	t.Helper()
	if values == nil {
		values = make(map[string]string)
	}
	site := ca.Issue(t, testnet.Domain, testnet.Subdomain)
	values[exampleDNS01] = "	tls " + site.Cert + " " + site.Key + "\n"
	values["/var/lib/caddy/homeward"] = own.Folder + "/storage"
	values["/var/log/caddy"] = own.Folder
	values["/etc/caddy/wg0.key"] = own.Folder + "/wg0.key"
	values[exampleRelayKey] = w.keys.Relay.Public
	return substitute(t, "caddyfile-examples/"+name, values)
}

// unprivileged wants processes that have nothing that others have not.
func unprivileged(t testing.TB, ends ...*testnet.Relay) {
	t.Helper()
	for _, end := range ends {
		if privilege := end.Privilege(t); len(privilege) > 0 {
			t.Errorf("an end runs with %q", privilege)
		}
	}
}

// waitSessions waits until relays have sessions with all their peers. What is asked for
// before waits no longer for one than dial_timeout.
func waitSessions(t testing.TB, relays ...*testnet.Relay) {
	t.Helper()
	for _, relay := range relays {
		testnet.Eventually(t, 20*time.Second, func() error {
			var status struct {
				Peers []struct {
					Name            string    `json:"name"`
					LatestHandshake time.Time `json:"latest_handshake"`
				} `json:"peers"`
			}
			if err := json.Unmarshal([]byte(relay.Admin(t, "/wireguard/wg0")), &status); err != nil {
				t.Fatal(err)
			}
			for _, peer := range status.Peers {
				if peer.LatestHandshake.IsZero() {
					return fmt.Errorf("%s has not called", peer.Name)
				}
			}
			return nil
		})
	}
}

// whoIsThere is a program at home that says what it sees of a request.
func whoIsThere(t testing.TB, namespace *testnet.Namespace, address string) {
	t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s", r.Host, r.Header.Get("X-Forwarded-For"))
	})}
	go server.Serve(namespace.Listen(t, "tcp", address))
	t.Cleanup(func() { server.Close() })
}

// accessLog waits for a line of an access log that has a text in it, and wants
// it to be a client's.
func accessLog(t *testing.T, folder, text, client string) {
	t.Helper()
	var line string
	testnet.Eventually(t, 10*time.Second, func() error {
		log, err := os.ReadFile(filepath.Join(folder, "access.log"))
		if line = lastLine(string(log), text); err == nil && line == "" {
			err = fmt.Errorf("no %q in the access log:\n%s", text, log)
		}
		return err
	})
	if !strings.HasPrefix(line, client+" ") {
		t.Errorf("home has logged %q, want the client %s", line, client)
	}
	t.Logf("home: %s", line)
}

// direct asks home for a site without the relay, by IPv6.
func (w *world) direct(t *testing.T, ca *testnet.CA, path string, header http.Header) string {
	t.Helper()
	transport := w.Client.HTTPTransport(t)
	transport.TLSClientConfig = &tls.Config{RootCAs: ca.Pool()}
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return w.Client.Dial(ctx, network, "["+testnet.HomeIP6+"]:443")
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+testnet.Domain+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestOwnHome runs caddyfile-examples/relay.Caddyfile and home.Caddyfile, both
// without any privilege, with home behind its router.
func TestOwnHome(t *testing.T) {
	w := newWorld(t)
	testnet.Need(t, "curl")
	ssh := services.StartSSH(t, w.Home)
	syslog := services.StartSyslogNG(t, w.Home)
	whoIsThere(t, w.Home, "127.0.0.1:8080")
	www := testnet.Folder(t)
	testnet.WriteFile(t, filepath.Join(www, "index.html"), []byte("files of the second site"), 0o644)
	// Another machine in home's network.
	w.Router.IP(t, "addr add 192.168.178.30/24 dev lan")
	services.Echo(t, w.Router, "192.168.178.30:22", "")

	own := newOwnHome(t, w)
	w.relay.Start(t, replace(t, w.example(t), "		:2022 {", `		:2222 {
			route {
				wireguard home:2222
			}
		}
		:2022 {`))
	own.Start(t, w.ownExample(t, own, "home.Caddyfile", w.private, map[string]string{"/srv/www": www}))
	waitSessions(t, w.relay)
	unprivileged(t, w.relay, own)

	for _, version := range []string{"http1.1", "http2", "http3"} {
		t.Run(version, func(t *testing.T) {
			get := w.curl
			if version == "http3" {
				get = w.http3Client(t)
			}
			got := get(t, version, "https://"+testnet.Domain+"/?"+version)
			if want := testnet.Domain + " for " + testnet.ClientIP; got.status != http.StatusOK || !strings.HasPrefix(got.body, want) {
				t.Errorf("got %d, %q, want %q", got.status, got.body, want)
			}
			accessLog(t, own.Folder, "/?"+version, testnet.ClientIP)
			got = get(t, version, "https://"+testnet.Subdomain+"/")
			if got.status != http.StatusOK || got.body != "files of the second site" {
				t.Errorf("got %d, %q", got.status, got.body)
			}
		})
	}

	// Who comes without the relay is not believed.
	t.Run("direct", func(t *testing.T) {
		got := w.direct(t, w.private, "/?direct", http.Header{"X-Forwarded-For": {"192.0.2.66"}})
		if want := testnet.Domain + " for " + testnet.ClientIP6; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		accessLog(t, own.Folder, "/?direct", testnet.ClientIP6)
	})

	t.Run("ssh", func(t *testing.T) { login(t, w, ssh) })

	t.Run("syslog", func(t *testing.T) {
		var want []string
		for i := range 500 {
			want = append(want, fmt.Sprint("message ", i))
		}
		input := filepath.Join(testnet.Folder(t), "input")
		testnet.WriteFile(t, input, []byte(strings.Join(want, "\n")+"\n"), 0o644)
		services.StartRsyslog(t, w.Client, syslog, services.Rsyslog{Host: testnet.Endpoint, Mode: "x509/name", Program: "home", Input: input})
		testnet.Eventually(t, 30*time.Second, func() error {
			if got := syslog.Received(t, "home"); !slices.Equal(got, want) {
				return fmt.Errorf("%d of %d messages have come", len(got), len(want))
			}
			return nil
		})
	})

	t.Run("another machine", func(t *testing.T) { w.echoes(t, w.Client, testnet.RelayIP+":2222") })
}

// echoes wants a connection to be answered.
func (w *world) echoes(t *testing.T, from *testnet.Namespace, address string) {
	t.Helper()
	if err := echoAt(from, address); err != nil {
		t.Errorf("%s: %v", address, err)
	}
}

func echoAt(from *testnet.Namespace, address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echoOnce(conn, "hello")
}

// TestOwnHomeTransparent runs caddyfile-examples/transparent.Caddyfile and
// home-transparent.Caddyfile: home's sites and matchers see the clients' own
// addresses, and only a program behind them does not.
func TestOwnHomeTransparent(t *testing.T) {
	for _, stack := range []string{"gvisor", "kernel"} {
		t.Run(stack, func(t *testing.T) {
			w := newWorld(t)
			testnet.Need(t, "curl")
			services.Echo(t, w.Home, "127.0.0.1:22", "127.0.0.1:19132")
			whoIsThere(t, w.Home, "127.0.0.1:8080")
			own := newOwnHome(t, w)
			w.relay.Start(t, replace(t, substitute(t, "caddyfile-examples/transparent.Caddyfile", w.paths(nil)),
				"listen_port 51820", "listen_port 51820\n\t\tstack "+stack))
			own.Start(t, replace(t, w.ownExample(t, own, "home-transparent.Caddyfile", w.public, nil),
				"		peer relay {", "		stack "+stack+"\n		peer relay {"))
			waitSessions(t, w.relay)
			unprivileged(t, w.relay, own)

			for _, family := range []struct{ name, relay, client string }{
				{"IPv4", testnet.RelayIP, testnet.ClientIP},
				{"IPv6", testnet.RelayIP6, testnet.ClientIP6},
			} {
				for _, version := range []string{"http1.1", "http2"} {
					t.Run(version+" over "+family.name, func(t *testing.T) {
						path := "/?" + version + family.name
						page := w.Client.Output(t, "curl", "--silent", "--show-error", "--max-time", "30", "--"+version,
							"--cacert", w.public.File, "--header", "X-Forwarded-For: 192.0.2.66",
							"--resolve", fmt.Sprintf("%s:443:[%s]", testnet.Domain, family.relay), "https://"+testnet.Domain+path)
						if want := testnet.Domain + " for " + family.client; page != want {
							t.Errorf("got %q, want %q", page, want)
						}
						accessLog(t, own.Folder, path, family.client)
					})
				}
				t.Run("a friend over "+family.name, func(t *testing.T) {
					mark := own.Log.Len()
					w.echoes(t, w.Client, "["+family.relay+"]:2022")
					// Which fail2ban at home can read.
					own.WaitLog(t, mark, `relayed connection.*"remote_ip":"`+regexp.QuoteMeta(family.client)+`"`, 10*time.Second)
				})
			}

			t.Run("http3", func(t *testing.T) {
				got := w.http3Client(t)(t, "http3", "https://"+testnet.Domain+"/?http3")
				if want := testnet.Domain + " for " + testnet.ClientIP; got.version != "3" || got.body != want {
					t.Errorf("got HTTP/%s, %q, want %q", got.version, got.body, want)
				}
				accessLog(t, own.Folder, "/?http3", testnet.ClientIP)
			})

			t.Run("plain http", func(t *testing.T) {
				got := w.curl(t, "http1.1", "http://"+testnet.Domain+"/x")
				if want := "https://" + testnet.Domain + "/x"; got.location != want {
					t.Errorf("got %d, location %q, want %q", got.status, got.location, want)
				}
			})

			t.Run("direct", func(t *testing.T) {
				if got, want := w.direct(t, w.public, "/?direct", nil), testnet.Domain+" for "+testnet.ClientIP6; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				accessLog(t, own.Folder, "/?direct", testnet.ClientIP6)
			})

			t.Run("no friend", func(t *testing.T) { noFriend(t, w) })

			t.Run("UDP", func(t *testing.T) {
				client := w.dialUDP(t)
				for n := range 20 {
					if err := client.echo(fmt.Sprint("datagram ", n)); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// noFriend connects from an address that home's SSH port is not open to.
func noFriend(t *testing.T, w *world) {
	t.Helper()
	if err := echoAt(w.Router, testnet.RelayIP+":2022"); err == nil {
		t.Error("home has served an address that it is not to serve")
	} else if os.IsTimeout(err) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the connection's end", err)
	}
}

// TestOwnHomeProxyProtocol runs caddyfile-examples/proxy-protocol.Caddyfile and
// home-proxy-protocol.Caddyfile.
func TestOwnHomeProxyProtocol(t *testing.T) {
	w := newWorld(t)
	testnet.Need(t, "curl")
	services.Echo(t, w.Home, "127.0.0.1:22", "")
	whoIsThere(t, w.Home, "127.0.0.1:8080")
	// Mail: what comes first is the header.
	services.Serve(t, w.Home, "127.0.0.1:2525", func(conn net.Conn) {
		header := make([]byte, 28)
		if _, err := io.ReadFull(conn, header); err == nil {
			fmt.Fprintf(conn, "%q from %s", header[:12], net.IP(header[16:20]))
		}
	})
	own := newOwnHome(t, w)
	for _, end := range []*testnet.Relay{w.relay, own} {
		end.UseBinary(testnet.FastCaddy(t))
	}
	w.relay.Start(t, substitute(t, "caddyfile-examples/proxy-protocol.Caddyfile", w.paths(nil)))
	own.Start(t, w.ownExample(t, own, "home-proxy-protocol.Caddyfile", w.public, nil))
	waitSessions(t, w.relay)
	unprivileged(t, w.relay, own)

	for _, version := range []string{"http1.1", "http2"} {
		t.Run(version, func(t *testing.T) {
			got := w.curl(t, version, "https://"+testnet.Domain+"/?"+version)
			if want := testnet.Domain + " for " + testnet.ClientIP; got.body != want || !strings.HasSuffix(version, got.version) {
				t.Errorf("got HTTP/%s, %q, want %q", got.version, got.body, want)
			}
			accessLog(t, own.Folder, "/?"+version, testnet.ClientIP)
		})
	}

	t.Run("plain http", func(t *testing.T) {
		got := w.curl(t, "http1.1", "http://"+testnet.Domain+"/x")
		if want := "https://" + testnet.Domain + "/x"; got.location != want {
			t.Errorf("got %d, location %q, want %q", got.status, got.location, want)
		}
	})

	t.Run("direct", func(t *testing.T) {
		if got, want := w.direct(t, w.public, "/?direct", nil), testnet.Domain+" for "+testnet.ClientIP6; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		accessLog(t, own.Folder, "/?direct", testnet.ClientIP6)
	})

	// Who comes without the relay is not believed.
	t.Run("direct, pretending", func(t *testing.T) {
		conn, err := w.Client.Dial(t.Context(), "tcp", "["+testnet.HomeIP6+"]:443")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, "PROXY TCP4 192.0.2.66 192.0.2.67 1234 443\r\n")
		client := tls.Client(conn, &tls.Config{ServerName: testnet.Domain, RootCAs: w.public.Pool()})
		fmt.Fprintf(client, "GET /?pretending HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", testnet.Domain)
		if answer, err := io.ReadAll(client); err == nil && !strings.Contains(string(answer), " for "+testnet.ClientIP6) {
			t.Errorf("home has answered %q", answer)
		}
	})

	t.Run("a friend", func(t *testing.T) {
		mark := own.Log.Len()
		w.echoes(t, w.Client, testnet.RelayIP+":2022")
		own.WaitLog(t, mark, `relayed connection.*"remote_ip":"`+regexp.QuoteMeta(testnet.ClientIP)+`"`, 10*time.Second)
	})
	t.Run("no friend", func(t *testing.T) { noFriend(t, w) })

	t.Run("mail", func(t *testing.T) {
		conn, err := w.Client.Dial(t.Context(), "tcp", testnet.RelayIP+":25")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, "EHLO client\r\n")
		answer, _ := io.ReadAll(conn)
		if want := `"\r\n\r\n\x00\r\nQUIT\n" from ` + testnet.ClientIP; string(answer) != want {
			t.Errorf("the mail server has %q, want %q", answer, want)
		}
	})
}
