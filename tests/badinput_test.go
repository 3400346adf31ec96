package tests

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// badInput is one mistake in a Caddyfile and what a person must be told.
type badInput struct {
	name string

	// old is replaced with new in ports.Caddyfile; what FOLDER and HOME_KEY
	// stand for there is filled in.
	old, new string

	// line is the text of the line that the error must name; default: the
	// first line of new.
	line string

	// hints are regular expressions that the error must match: what is wrong
	// and what to do.
	hints []string

	// onlyRun marks what shows only when sockets are opened, which `caddy
	// validate` never does.
	onlyRun bool
}

const peerLine = "		peer home {"

var badInputs = []badInput{
	{
		name:  "no private key",
		old:   "		private_key {file.FOLDER/wg0.key}\n",
		new:   "",
		line:  "	wireguard wg0 {",
		hints: []string{`private_key`, `missing`, `genkey`},
	},
	{
		name:  "a key that is none",
		old:   "FOLDER/wg0.key",
		new:   "FOLDER/wrong.key",
		hints: []string{`private_key`, `not a WireGuard key`},
	},
	{
		name:  "a key file that is not there",
		old:   "FOLDER/wg0.key",
		new:   "FOLDER/none.key",
		hints: []string{`private_key`, `FOLDER/none\.key`, `does not exist`},
	},
	{
		name:  "a key file that the relay may not read",
		old:   "FOLDER/wg0.key",
		new:   "FOLDER/root.key",
		hints: []string{`private_key`, `FOLDER/root\.key`, `root`, `nobody|65534`},
	},
	{
		name:  "no public key",
		old:   "			public_key HOME_KEY\n",
		new:   "",
		line:  peerLine,
		hints: []string{`home`, `public_key`, `missing`},
	},
	{
		name:  "a public key that is none",
		old:   "public_key HOME_KEY",
		new:   "public_key HOME",
		hints: []string{`home`, `public_key`, `not a WireGuard key`},
	},
	{
		name:  "overlapping allowed IPs",
		old:   peerLine,
		new:   "		peer office {\n			public_key OTHER_KEY\n			allowed_ips 10.77.0.2/32\n		}\n" + peerLine,
		line:  "			allowed_ips 10.77.0.2/32",
		hints: []string{`home`, `office`, `10\.77\.0\.2/32`, `allowed_ips`},
	},
	{
		name:  "an upstream outside of every peer",
		old:   "wireguard home:5201",
		new:   "wireguard 10.99.0.1:5201",
		hints: []string{`10\.99\.0\.1`, `allowed_ips`},
	},
	{
		name:  "an upstream without a port",
		old:   "wireguard home:5201",
		new:   "wireguard home",
		hints: []string{`home`, `port`},
	},
	{
		name:  "a tunnel that is not there",
		old:   "wireguard home:5201",
		new:   "wireguard home:5201 {\n					tunnel wg9\n				}",
		line:  "tunnel wg9|wireguard home:5201",
		hints: []string{`wg9`},
	},
	{
		name:  "a busy UDP port",
		old:   "listen_port 51820",
		new:   "listen_port 51899",
		line:  "listen_port 51899|wireguard wg0",
		hints: []string{`51899`, `another program|in use`, `listen_port`}, onlyRun: true,
	},
	{
		name:  "an unknown option of a tunnel",
		old:   "		listen_port 51820",
		new:   "		adress 10.0.0.1/24",
		hints: []string{`adress`, `address`},
	},
	{
		name:  "an unknown option of a peer",
		old:   "			allowed_ips 10.77.0.2/32",
		new:   "			alowed_ips 10.77.0.2/32",
		hints: []string{`alowed_ips`, `allowed_ips`},
	},
	{
		name:  "an unknown option of the handler",
		old:   "dial_timeout 20s",
		new:   "dial_timeuot 20s",
		hints: []string{`dial_timeuot`, `dial_timeout`},
	},
	{
		name:  "a duration that is none",
		old:   "dial_timeout 20s",
		new:   "dial_timeout soon",
		hints: []string{`dial_timeout`, `soon`},
	},
	{
		name:  "a block that does not begin",
		old:   "	layer4 {",
		new:   "	layer4",
		line:  ".*",
		hints: []string{`unrecognized|unexpected`},
	},
}

// TestBadInput gives the relay what people get wrong: with `caddy validate`,
// at the start, and to a relay that is in use. Each time the error names the
// file, the line and the remedy; nothing panics and nothing is half-applied.
func TestBadInput(t *testing.T) {
	keys := testnet.NewTunnelKeys(t)
	keys.Preshared = testnet.NewPresharedKey(t)
	w := newWorldWith(t, keys)
	services.Echo(t, w.Home, ":7000", "")
	good := replace(t, w.ports(t), "			allowed_ips 10.77.0.2/32",
		"			preshared_key {file."+w.relay.Folder+"/home.psk}\n			allowed_ips 10.77.0.2/32")
	w.start(t, good)

	// A half of a key is still a secret.
	wrong := keys.Relay.Private[:30]
	w.relay.Secret(t, "wrong.key", wrong)
	testnet.WriteFile(t, filepath.Join(w.relay.Folder, "root.key"), []byte(keys.Relay.Private), 0o600)
	w.Relay.ListenPacket(t, "udp", ":51899")
	fill := strings.NewReplacer("FOLDER", w.relay.Folder, "HOME_KEY", keys.Home.Public,
		"OTHER_KEY", testnet.NewKey(t).Public)

	for _, bad := range badInputs {
		t.Run(bad.name, func(t *testing.T) {
			text := replace(t, good, fill.Replace(bad.old), fill.Replace(bad.new))
			check := func(t *testing.T, output string, err error) {
				t.Helper()
				if err == nil {
					t.Errorf("no error:\n%s", output)
				}
				bad.check(t, text, output, fill)
				for _, secret := range []string{keys.Relay.Private, keys.Preshared, wrong} {
					if strings.Contains(output, secret) {
						t.Errorf("the output has a secret:\n%s", output)
					}
				}
			}

			file := filepath.Join(w.relay.Folder, "bad", "Caddyfile")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			testnet.WriteFile(t, file, []byte(text), 0o644)
			if !bad.onlyRun {
				output, err := w.relay.Run("validate", "--config", file, "--adapter", "caddyfile")
				check(t, output, err)
			}

			// In another namespace nothing but the mistake can be in the way,
			// and no admin endpoint is there to be disturbed.
			other := w.relay.At(w.Client)
			if bad.onlyRun {
				w.Client.ListenPacket(t, "udp", ":51899")
			}
			output, err := other.Run("run", "--config", file, "--adapter", "caddyfile")
			check(t, output, err)

			// The file has grown since the relay started with it, as files do:
			// a line number of then would be wrong.
			text = "# A line more.\n\n\n" + text
			mark := w.relay.Log.Len()
			output, err = w.relay.Reload(t, text)
			// What Caddy's client does not pass on is in the relay's log.
			check(t, output+w.relay.Log.Since(mark), err)

			conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7000")
			if err != nil {
				t.Fatalf("the relay no longer serves: %v", err)
			}
			defer conn.Close()
			if err := echoOnce(conn, "still here"); err != nil {
				t.Errorf("the relay no longer serves: %v", err)
			}
		})
	}
}

// place finds file:line in an error.
var place = regexp.MustCompile(`Caddyfile:(\d+)`)

func (b badInput) check(t *testing.T, text, output string, fill *strings.Replacer) {
	t.Helper()
	if trace := regexp.MustCompile(`(?m)^panic:|^goroutine \d+ \[|runtime error`).FindString(output); trace != "" {
		t.Errorf("a panic:\n%s", output)
	}
	line := b.line
	if line == "" {
		line, _, _ = strings.Cut(regexp.QuoteMeta(strings.TrimSpace(fill.Replace(b.new))), "\n")
	} else if !strings.Contains(line, "|") && line != ".*" {
		line = regexp.QuoteMeta(strings.TrimSpace(line))
	}
	if !namesLine(text, output, regexp.MustCompile(line)) {
		t.Errorf("the error does not name the line of %q:\n%s", line, output)
	}
	for _, hint := range b.hints {
		if !regexp.MustCompile(`(?s)` + fill.Replace(hint)).MatchString(output) {
			t.Errorf("the error has no %q:\n%s", hint, output)
		}
	}
}

// namesLine says whether the error names a line of the Caddyfile that matches.
func namesLine(text, output string, want *regexp.Regexp) bool {
	lines := strings.Split(text, "\n")
	for _, match := range place.FindAllStringSubmatch(output, -1) {
		number := 0
		for _, digit := range match[1] {
			number = number*10 + int(digit-'0')
		}
		if number >= 1 && number <= len(lines) && want.MatchString(lines[number-1]) {
			return true
		}
	}
	return false
}
