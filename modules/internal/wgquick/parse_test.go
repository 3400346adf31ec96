package wgquick

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

// Keys of nobody's. The public one belongs to the private one.
const (
	privateKey   = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	publicKey    = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
	otherKey     = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
	presharedKey = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
)

const everyKey = `# my laptop
[Interface]
PrivateKey = ` + privateKey + `
Address = 10.77.0.2/24, fd77::2/64
Address = 10.78.0.2
ListenPort = 51820
FwMark = 0xca6c
MTU = 1412
DNS = 10.77.0.1, fd77::1
DNS = home.example.org
Table = off
PreUp = echo a=b
PostUp = iptables -A FORWARD -i %i -j ACCEPT; true # as ever
PostUp = true
PreDown = echo c
PostDown = echo d
SaveConfig = true

# Name = the vm
# in Falkenstein
[Peer]
PublicKey = ` + publicKey + `
PresharedKey = ` + presharedKey + `
AllowedIPs = 10.77.0.1/32, 10.1.2.3/8 # all of it
AllowedIPs = fd77::1/128
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25

[Peer]
# friendly_name=phone
PublicKey = ` + otherKey + `
AllowedIPs =
PersistentKeepalive = off
`

func parse(t *testing.T, content string) *File {
	t.Helper()
	f, err := Parse("wg0.conf", []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestParse(t *testing.T) {
	f := parse(t, everyKey)
	want := &File{
		Path: "wg0.conf",
		Interface: Interface{
			Comments: []string{"my laptop", "as ever"},
			Entries: Entries{
				{PrivateKey, 3}, {Address, 4}, {Address, 5}, {ListenPort, 6}, {FwMark, 7}, {MTU, 8}, {DNS, 9}, {DNS, 10},
				{Table, 11}, {PreUp, 12}, {PostUp, 13}, {PostUp, 14}, {PreDown, 15}, {PostDown, 16}, {SaveConfig, 17},
			},
			PrivateKey: must(tunnel.ParsePrivateKey(privateKey)),
			Addresses:  prefixes("10.77.0.2/24", "fd77::2/64", "10.78.0.2/32"),
			ListenPort: 51820,
			FwMark:     0xca6c,
			MTU:        1412,
			DNS:        []string{"10.77.0.1", "fd77::1", "home.example.org"},
			Table:      "off",
			PreUp:      []string{"echo a=b"},
			PostUp:     []string{"iptables -A FORWARD -i %i -j ACCEPT; true", "true"},
			PreDown:    []string{"echo c"},
			PostDown:   []string{"echo d"},
			SaveConfig: true,
		},
		Peers: []Peer{{
			Name:     "the vm",
			Line:     21,
			Comments: []string{"in Falkenstein", "all of it"},
			Entries: Entries{
				{PublicKey, 22}, {PresharedKey, 23}, {AllowedIPs, 24}, {AllowedIPs, 25}, {Endpoint, 26}, {PersistentKeepalive, 27},
			},
			PublicKey:           must(tunnel.ParsePublicKey(publicKey)),
			PresharedKey:        must(tunnel.ParsePresharedKey(presharedKey)),
			AllowedIPs:          prefixes("10.77.0.1/32", "10.0.0.0/8", "fd77::1/128"),
			Endpoint:            "[2001:db8::1]:51820",
			PersistentKeepalive: 25 * time.Second,
		}, {
			Name:      "phone",
			Line:      29,
			Entries:   Entries{{PublicKey, 31}, {AllowedIPs, 32}, {PersistentKeepalive, 33}},
			PublicKey: must(tunnel.ParsePublicKey(otherKey)),
		}},
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got\n%+v\nwant\n%+v", f, want)
	}
}

// The same file in the forms that other systems write.
func TestParseForms(t *testing.T) {
	plain := parse(t, everyKey)
	crlf := strings.ReplaceAll(everyKey, "\n", "\r\n")
	little, big := []byte{0xff, 0xfe}, []byte{0xfe, 0xff}
	for _, unit := range utf16.Encode([]rune(crlf)) {
		little = append(little, byte(unit), byte(unit>>8))
		big = append(big, byte(unit>>8), byte(unit))
	}
	shouted := strings.NewReplacer("[Interface]", "[INTERFACE]", "[Peer]", " [peer] ", "Address", "aDDRESS", "PublicKey", "publickey",
		"AllowedIPs = ", "\tALLOWEDIPS=", "Private", "Private ", "= off", "= OFF", "0xca6c", "51820", "= true", "= TRUE").Replace(everyKey)
	for _, test := range []struct {
		name, in string
	}{
		{"CRLF", crlf},
		{"byte order mark", "\ufeff" + crlf},
		{"UTF-16 as Windows has it", string(little)},
		{"UTF-16 the other way", string(big)},
		{"no line end at the end", strings.TrimRight(everyKey, "\n")},
		{"other cases and spaces", shouted},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := parse(t, test.in)
			got.Interface.PostUp[1] = strings.ToLower(got.Interface.PostUp[1]) // shouted
			got.Interface.Table = strings.ToLower(got.Interface.Table)
			if !reflect.DeepEqual(got, plain) {
				t.Errorf("got\n%+v\nwant\n%+v", got, plain)
			}
		})
	}
}

func TestParsePeerNames(t *testing.T) {
	peer := "[Peer]\nPublicKey = " + publicKey + "\n"
	second := "[Peer]\nPublicKey = " + otherKey + "\n"
	for _, test := range []struct {
		name, in string
		want     []string
	}{
		{"none", peer + second, []string{"", ""}},
		{"above", "# Name = a\n" + peer + "\n# Name = b\n" + second, []string{"a", "b"}},
		{"above, close together", "# Name = a\n" + peer + "# Name = b\n" + second, []string{"a", "b"}},
		{"above, with an empty line between", "# Name = a\n\n" + peer + "\n# Name = b\n\n" + second, []string{"a", "b"}},
		{"below the header", strings.Replace(peer, "]\n", "]\n# Name = a\n", 1) + "\n" + second, []string{"a", ""}},
		{"behind the header", strings.Replace(peer, "]\n", "] # Name = a\n", 1) + second, []string{"a", ""}},
		{"below the keys", peer + "# Name = a\n\n" + second + "# Name = b", []string{"a", "b"}},
		{"behind a key", strings.TrimSpace(peer) + " # Name = a\n" + second, []string{"a", ""}},
		{"other tools' ways", "#+name: a\n" + peer + "\n### friendly_name = b\n" + second, []string{"a", "b"}},
		{"the first one counts", "# Name = a\n# Name = b\n" + peer + second, []string{"a", ""}},
		{"no name", "# rename = a\n# the name = a\n" + peer + "# Name =\n\n" + second, []string{"", ""}},
		{"the interface's is nobody's", "[Interface]\n# Name = a\nListenPort = 1\n" + peer + second, []string{"", ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := parse(t, "[Interface]\nListenPort = 1\n\n"+test.in)
			var got []string
			for _, peer := range f.Peers {
				got = append(got, peer.Name)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestParseSuperseded(t *testing.T) {
	f := parse(t, "[Interface]\nListenPort = 1\nAddress = 10.0.0.1\nAddress = 10.0.0.2\nListenPort = 2\n[Interface]\nListenPort = 3\n")
	if got, want := f.Interface.Entries.Superseded(), (Entries{{ListenPort, 2}, {ListenPort, 5}}); !slices.Equal(got, want) || f.Interface.ListenPort != 3 {
		t.Errorf("%v count for nothing and the port is %d, want %v and 3", got, f.Interface.ListenPort, want)
	}
	if got, want := f.Interface.Entries.Lines(Address), []int{3, 4}; !slices.Equal(got, want) {
		t.Errorf("the addresses are in lines %v, want %v", got, want)
	}
}

// No error has a key in it, whatever is wrong with the line that the key is in.
func TestParseErrors(t *testing.T) {
	peer := "[Interface]\n[Peer]\nPublicKey = " + publicKey + "\n"
	for _, test := range []struct {
		name, in, want string
	}{
		{"empty", "", "wg0.conf: there is no [Interface] section"},
		{"only a peer", "[Peer]\nPublicKey = " + publicKey, "wg0.conf: there is no [Interface] section"},
		{"binary", "[Interface]\n\x00", "wg0.conf: this is no text file"},
		{"no section", "PrivateKey = " + privateKey, "wg0.conf:1: a key before any section"},
		{"strange section", "[Interface]\n[Network]", "wg0.conf:2: there is no such section"},
		{"unfinished section", "[Interface", "wg0.conf:1: there is no such section"},
		{"no key", "[Interface]\nhello", "wg0.conf:2: this is no key = value"},
		{"broken line", "[Interface]\nPrivateKey =\n" + privateKey, "wg0.conf:2: PrivateKey has no value"},
		{"key without a name", "[Interface]\n" + privateKey, "wg0.conf:2: WireGuard has no such key here; there are PrivateKey, Address, "},
		{"key without the sign", "[Interface]\nPrivateKey " + privateKey, "wg0.conf:2: WireGuard has no such key here"},
		{"unknown key", peer + "Jc = 4", "wg0.conf:4: WireGuard has no such key here; there are PublicKey, "},
		{"key of a peer", "[Interface]\n\nendpoint = a:1", "wg0.conf:3: Endpoint belongs into the file's other kind of section"},
		{"key of this end", peer + "PostUp = rm -rf /", "wg0.conf:4: PostUp belongs into the file's other kind of section"},
		{"private key", "[Interface]\nPrivateKey = " + privateKey[1:], "wg0.conf:2: PrivateKey: not a WireGuard key: "},
		{"address", "[Interface]\nAddress = " + privateKey, "wg0.conf:2: Address: not a list of addresses"},
		{"address with a zone", "[Interface]\nAddress = fe80::1%eth0", "wg0.conf:2: Address: not a list of addresses"},
		{"mapped address", "[Interface]\nAddress = ::ffff:10.0.0.1", "wg0.conf:2: Address: there is an IPv4 address in IPv6 form"},
		{"port", "[Interface]\nListenPort = 65536", "wg0.conf:2: ListenPort: not a UDP port"},
		{"mark", "[Interface]\nFwMark = 0x1ffffffff", "wg0.conf:2: FwMark: not a firewall mark"},
		{"mark in octal", "[Interface]\nFwMark = 0o17", "wg0.conf:2: FwMark: not a firewall mark"},
		{"MTU", "[Interface]\nMTU = auto", "wg0.conf:2: MTU: not a number of bytes"},
		{"table", "[Interface]\nTable = a b", "wg0.conf:2: Table: not a routing table"},
		{"boolean", "[Interface]\nSaveConfig = yes", "wg0.conf:2: SaveConfig: neither true nor false"},
		{"public key", "[Interface]\n[Peer]\nPublicKey = x", "wg0.conf:3: PublicKey: not a WireGuard key: "},
		{"no public key", "[Interface]\n\n[Peer]\nAllowedIPs = 10.0.0.1", "wg0.conf:3: this [Peer] has no PublicKey"},
		{"same public key", peer + "[Peer]\nPublicKey = " + publicKey, "wg0.conf:5: the [Peer] above with the PublicKey in line 3 is the same one"},
		{"preshared key", peer + "PresharedKey = " + presharedKey[:43], "wg0.conf:4: PresharedKey: not a WireGuard key: "},
		{"allowed IPs", peer + "AllowedIPs = 10.0.0.0/33", "wg0.conf:4: AllowedIPs: not a list of addresses"},
		{"allowed IPs to take away", peer + "AllowedIPs = -10.0.0.0/8", "wg0.conf:4: AllowedIPs: not a list of addresses"},
		{"endpoint without a port", peer + "Endpoint = example.org", "wg0.conf:4: Endpoint: not host:port"},
		{"endpoint with a bare IPv6 address", peer + "Endpoint = 2001:db8::1:51820", "wg0.conf:4: Endpoint: not host:port"},
		{"endpoint without a host", peer + "Endpoint = :51820", "wg0.conf:4: Endpoint: no host name"},
		{"endpoint with a placeholder", peer + "Endpoint = {env.HOST}:51820", "wg0.conf:4: Endpoint: no host name"},
		{"endpoint with port 0", peer + "Endpoint = example.org:0", "wg0.conf:4: Endpoint: no UDP port"},
		{"keepalive", peer + "PersistentKeepalive = 25s", "wg0.conf:4: PersistentKeepalive: not a number of seconds"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse("wg0.conf", []byte(test.in))
			if err == nil {
				t.Fatalf("it is accepted; want an error with %q", test.want)
			}
			if !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			noKeys(t, err.Error(), test.in)
		})
	}
}

// noKeys finds pieces of keys that are in a file also in a text.
func noKeys(t *testing.T, text, file string) {
	t.Helper()
	for _, word := range strings.Fields(file) {
		if word = strings.TrimRight(word, "="); len(word) >= 40 && (strings.Contains(text, word[:20]) || strings.Contains(text, word[20:])) {
			t.Errorf("%q has a part of a key in it", text)
		}
	}
}

func TestEncode(t *testing.T) {
	want := `# my laptop
# as ever
[Interface]
PrivateKey = ` + privateKey + `
Address = 10.77.0.2/24, fd77::2/64, 10.78.0.2/32
ListenPort = 51820
FwMark = 0xca6c
MTU = 1412
DNS = 10.77.0.1, fd77::1, home.example.org
Table = off
PreUp = echo a=b
PostUp = iptables -A FORWARD -i %i -j ACCEPT; true
PostUp = true
PreDown = echo c
PostDown = echo d
SaveConfig = true

# Name = the vm
# in Falkenstein
# all of it
[Peer]
PublicKey = ` + publicKey + `
PresharedKey = ` + presharedKey + `
AllowedIPs = 10.77.0.1/32, 10.0.0.0/8, fd77::1/128
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25

# Name = phone
[Peer]
PublicKey = ` + otherKey + `
`
	got, err := parse(t, everyKey).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, f := range map[string]*File{
		"a command that goes on":       {Interface: Interface{PostUp: []string{"a\nPreUp = b"}}},
		"a command with a comment":     {Interface: Interface{PostUp: []string{"a # b"}}},
		"a comment that is none later": {Interface: Interface{Comments: []string{"a\nPreUp = b"}}},
		"a name that is none later":    {Peers: []Peer{{Name: "a\n[Interface]\nPostUp = b"}}},
	} {
		if text, err := f.Encode(); err == nil {
			t.Errorf("%s is written:\n%s", name, text)
		}
	}
}

// The tools that the files are for read the same in what is written as in what
// was read.
func TestWgQuickReadsIt(t *testing.T) {
	wgQuick, err := exec.LookPath("wg-quick")
	if err != nil {
		t.Skip("wg-quick is not installed")
	}
	strip := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "wg0.conf")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(wgQuick, "strip", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	f := parse(t, everyKey)
	encoded, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// What wg-quick passes on to wg is all but its own keys.
	got := parse(t, strip(encoded))
	want := parse(t, everyKey)
	want.Interface = Interface{PrivateKey: f.Interface.PrivateKey, ListenPort: f.Interface.ListenPort, FwMark: f.Interface.FwMark, Comments: f.Interface.Comments}
	if g, w := unplaced(got), unplaced(want); !reflect.DeepEqual(g, w) {
		t.Errorf("got\n%+v\nwant\n%+v", g, w)
	}
}

// unplaced returns the file without its line numbers.
func unplaced(f *File) *File {
	f.Path, f.Interface.Entries = "", nil
	for i := range f.Peers {
		f.Peers[i].Line, f.Peers[i].Entries = 0, nil
	}
	return f
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everyKey))
	f.Add([]byte("\ufeff" + strings.ReplaceAll(everyKey, "\n", "\r\n")))
	f.Add([]byte("[Interface]\nPrivateKey " + privateKey + "\n"))
	f.Add([]byte("#a\n\n#b\n[peer]#c\nPublicKey=" + publicKey + "#d\n#e\n\n#f\n[Interface]\n"))
	f.Add([]byte{0xff, 0xfe, '[', 0, 0xd8})
	f.Fuzz(func(t *testing.T, content []byte) {
		file, err := Parse("wg0.conf", content)
		if err != nil {
			noKeys(t, err.Error(), string(content))
			return
		}
		first, err := file.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := Parse("wg0.conf", first)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, first)
		}
		second, err := again.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if string(first) != string(second) {
			t.Errorf("first\n%s\nthen\n%s", first, second)
		}
		if a, b := unplaced(file), unplaced(again); !reflect.DeepEqual(a, b) {
			t.Errorf("first\n%+v\nthen\n%+v", a, b)
		}
	})
}

// A File can be printed in a log without giving its secrets away.
func TestFilePrintsNoSecret(t *testing.T) {
	f := parse(t, everyKey)
	raw, err := base64.StdEncoding.DecodeString(privateKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		text := strings.ToLower(fmt.Sprintf(format, f))
		for _, secret := range []string{strings.ToLower(privateKey), strings.ToLower(presharedKey), fmt.Sprintf("%x", raw), strings.Trim(fmt.Sprintf("%d", raw), "[]")} {
			if strings.Contains(text, secret) {
				t.Errorf("%s prints a secret", format)
			}
		}
	}
}
