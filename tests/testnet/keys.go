package testnet

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"testing"
)

// Key is a WireGuard key pair. Both halves are in base64, as wg(8) has them.
type Key struct{ Private, Public string }

// NewKey makes a key pair.
func NewKey(t testing.TB) Key {
	t.Helper()
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// WireGuard stores private keys clamped (RFC 7748, section 5), and wg(8)
	// shows them so.
	bytes := private.Bytes()
	bytes[0] &= 248
	bytes[31] = bytes[31]&127 | 64
	return Key{
		Private: base64.StdEncoding.EncodeToString(bytes),
		Public:  base64.StdEncoding.EncodeToString(private.PublicKey().Bytes()),
	}
}

// NewPresharedKey makes a preshared key in base64.
func NewPresharedKey(t testing.TB) string {
	t.Helper()
	var key [32]byte
	rand.Read(key[:])
	return base64.StdEncoding.EncodeToString(key[:])
}

// TunnelKeys are the keys of one tunnel between a relay and a home.
type TunnelKeys struct {
	Relay, Home Key

	// Preshared is empty unless the tunnel has a preshared key.
	Preshared string
}

// NewTunnelKeys makes the keys of a tunnel, without a preshared one.
func NewTunnelKeys(t testing.TB) TunnelKeys {
	t.Helper()
	return TunnelKeys{Relay: NewKey(t), Home: NewKey(t)}
}

// Hex is a base64 key in hexadecimal, as wireguard-go's UAPI has it.
func Hex(t testing.TB, key string) string {
	t.Helper()
	bytes, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(bytes)
}
