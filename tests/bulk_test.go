package tests

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// bulk is the size of a large transfer, in bytes.
const bulk = 256 << 20

func TestBulkHTTPS(t *testing.T) {
	w := newWorld(t)
	apache := services.StartApache(t, w.Home, w.private)
	w.start(t, w.example(t))
	transport := w.Client.HTTPTransport(t)
	transport.TLSClientConfig = &tls.Config{RootCAs: w.public.Pool()}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Minute}

	const url = "https://" + testnet.Domain + "/dav/bulk"
	up := services.NewStream(1, bulk)
	request, err := http.NewRequest(http.MethodPut, url, up)
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = bulk
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		t.Fatalf("upload: %s", response.Status)
	}
	want := up.Sum()
	if got := sumFile(t, filepath.Join(apache.Folder, testnet.Domain, "dav", "bulk")); got != want {
		t.Errorf("home got the hash %s, want %s", got, want)
	}

	response, err = client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, size, err := services.SumReader(response.Body)
	if got != want || size != bulk || err != nil {
		t.Errorf("the download has %d bytes and hash %s (%v), want %d and %s", size, got, err, bulk, want)
	}
}

func TestBulkTCP(t *testing.T) {
	w := newWorld(t)
	services.Hasher(t, w.Home, ":7001", 2, bulk)
	w.start(t, w.ports(t))
	bulkTCP(t, w, bulk)
}

// bulkTCP sends size bytes home and gets as many back, from a hasher on port
// 7001 with seed 2.
func bulkTCP(t *testing.T, w *world, size int64) {
	t.Helper()
	conn, err := w.Client.Dial(t.Context(), "tcp", testnet.Endpoint+":7001")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	up := services.NewStream(1, size)
	if _, err := io.Copy(conn, up); err != nil {
		t.Fatal(err)
	}
	// The answer comes after our end and so proves a half-closed connection.
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReaderSize(conn, 1<<16)
	answer, err := reader.ReadString('\n')
	if want := fmt.Sprintf("%s %d\n", up.Sum(), size); answer != want || err != nil {
		t.Fatalf("home got %q (%v), want %q", answer, err, want)
	}
	got, received, err := services.SumReader(reader)
	want := services.NewStream(2, size)
	if _, err := io.Copy(io.Discard, want); err != nil {
		t.Fatal(err)
	}
	if got != want.Sum() || received != size || err != nil {
		t.Errorf("the download has %d bytes and hash %s (%v), want %d and %s", received, got, err, size, want.Sum())
	}
}
