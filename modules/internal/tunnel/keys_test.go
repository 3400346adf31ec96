package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestKeysRoundTrip(t *testing.T) {
	private := NewPrivateKey()
	again, err := ParsePrivateKey(private.Base64())
	if err != nil || again != private {
		t.Fatalf("private key: %v", err)
	}
	public, err := ParsePublicKey(private.Public().String())
	if err != nil || public != private.Public() {
		t.Fatalf("public key: %v", err)
	}
	preshared := NewPresharedKey()
	if again, err := ParsePresharedKey(preshared.Base64()); err != nil || again != preshared {
		t.Fatalf("preshared key: %v", err)
	}
}

// The pair is from RFC 7748, section 6.1.
func TestPublicKeyIsX25519(t *testing.T) {
	private, err := ParsePrivateKey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := private.Public().String(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, text := range []string{
		"", "x", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LC==",
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", strings.Repeat("A", 1000), "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCp=",
	} {
		if _, err := ParsePrivateKey(text); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v", text, err)
		} else if text != "" && len(text) > 1 && strings.Contains(err.Error(), text) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	private, preshared := NewPrivateKey(), NewPresharedKey()
	config := Config{PrivateKey: private, Peers: []Peer{{PresharedKey: preshared}}}
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	printed := string(encoded) + fmt.Sprintf("%v %+v %#v %s %x %d %q %v", config, config, config, private, private, private, preshared, &config)
	for _, secret := range []string{private.Base64(), preshared.Base64(), hexKey(private), hexKey(preshared), fmt.Sprint([KeySize]byte(private)), fmt.Sprint([KeySize]byte(preshared))} {
		if strings.Contains(printed, strings.Trim(secret, "[]")) {
			t.Errorf("a secret is in %s", printed)
		}
	}
}
