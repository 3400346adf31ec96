package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

// KeySize is the length of every WireGuard key, in bytes.
const KeySize = 32

// ErrKey means that a text is not a WireGuard key. The text is never part of
// the error, because it may be a secret with a typing mistake.
var ErrKey = errors.New("not a WireGuard key: it must be 44 characters of base64, as WireGuard's tools print it")

// PublicKey is the public half of a Curve25519 key pair: the name of a peer.
type PublicKey [KeySize]byte

// PrivateKey is the secret half of a Curve25519 key pair. It prints as
// "(private key)" everywhere; only Base64 shows it.
type PrivateKey [KeySize]byte

// PresharedKey is the optional symmetric key between two peers (WireGuard
// whitepaper, section 5.2). The zero value means none. It prints as
// "(preshared key)" everywhere; only Base64 shows it.
type PresharedKey [KeySize]byte

// ParsePublicKey reads a public key in base64.
func ParsePublicKey(text string) (PublicKey, error) { return parseKey[PublicKey](text) }

// ParsePrivateKey reads a private key in base64.
func ParsePrivateKey(text string) (PrivateKey, error) { return parseKey[PrivateKey](text) }

// ParsePresharedKey reads a preshared key in base64.
func ParsePresharedKey(text string) (PresharedKey, error) { return parseKey[PresharedKey](text) }

func parseKey[K ~[KeySize]byte](text string) (key K, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != KeySize {
		return key, ErrKey
	}
	if key = K(raw); key == (K{}) {
		return key, fmt.Errorf("%w (this one is all zero)", ErrKey)
	}
	return key, nil
}

// NewPrivateKey makes a private key.
func NewPrivateKey() PrivateKey {
	var key PrivateKey
	rand.Read(key[:]) // never fails since Go 1.24
	// Clamped as `wg genkey` does, so that the two halves agree whoever
	// reads the key (RFC 7748, section 5).
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return key
}

// NewPresharedKey makes a preshared key.
func NewPresharedKey() PresharedKey {
	var key PresharedKey
	rand.Read(key[:])
	return key
}

// Public returns the key pair's public half.
func (k PrivateKey) Public() PublicKey {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic("a 32-byte X25519 private key was refused: " + err.Error())
	}
	return PublicKey(private.PublicKey().Bytes())
}

// String returns the key in base64, as WireGuard's tools print it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func (PrivateKey) String() string     { return "(private key)" }
func (PrivateKey) GoString() string   { return "(private key)" }
func (PresharedKey) String() string   { return "(preshared key)" }
func (PresharedKey) GoString() string { return "(preshared key)" }

// Format keeps the key's bytes out of every verb of package fmt.
func (k PrivateKey) Format(s fmt.State, _ rune) { fmt.Fprint(s, k.String()) }

// Format keeps the key's bytes out of every verb of package fmt.
func (k PresharedKey) Format(s fmt.State, _ rune) { fmt.Fprint(s, k.String()) }

// MarshalText keeps the key out of JSON and other encodings.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText keeps the key out of JSON and other encodings.
func (k PresharedKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Base64 returns the secret itself, for a key file.
func (k PrivateKey) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Base64 returns the secret itself, for a key file.
func (k PresharedKey) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

func hexKey[K ~[KeySize]byte](key K) string {
	raw := [KeySize]byte(key)
	return hex.EncodeToString(raw[:])
}

func parseHex(text string) (PublicKey, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != KeySize {
		return PublicKey{}, ErrKey
	}
	return PublicKey(raw), nil
}
