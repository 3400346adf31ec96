package services

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"math/rand/v2"
)

// Digest takes the SHA-256 of what is written to it.
type Digest struct{ hash.Hash }

// NewDigest makes a digest of nothing yet.
func NewDigest() *Digest { return &Digest{sha256.New()} }

// Sum is the hash of what has been written, in hexadecimal.
func (d *Digest) Sum() string { return hex.EncodeToString(d.Hash.Sum(nil)) }

// Stream is a reader of bytes that look random and are the same for the same
// seed and size.
type Stream struct {
	random *rand.ChaCha8
	left   int64
	digest *Digest
}

// NewStream makes a stream of size bytes.
func NewStream(seed byte, size int64) *Stream {
	return &Stream{random: rand.NewChaCha8([32]byte{seed}), left: size, digest: NewDigest()}
}

// Read reads from the stream.
func (s *Stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.left))
	s.random.Read(p[:n])
	s.digest.Write(p[:n])
	s.left -= int64(n)
	return n, nil
}

// Sum is the hash of what has been read, as Digest.Sum.
func (s *Stream) Sum() string { return s.digest.Sum() }

// SumReader reads to the end and returns the hash and the number of bytes.
func SumReader(r io.Reader) (sum string, size int64, err error) {
	digest := NewDigest()
	size, err = io.Copy(digest, r)
	return digest.Sum(), size, err
}
