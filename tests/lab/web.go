package lab

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/websocket"

	"github.com/homeward-relay/homeward/tests/testnet"
)

const (
	// pageSize is that of the document that home's web server has.
	pageSize = 2 << 10

	// A browser that loads the document fetches these after it.
	objects    = 20
	objectSize = 16 << 10

	webSocketPath = "/ws"
)

// site is what everybody calls home's web server.
const site = "https://" + testnet.Domain

// startWeb starts home's web server, and makes the CA of its certificate.
func (w *World) startWeb(t testing.TB) {
	t.Helper()
	w.ca = testnet.NewCA(t, "laboratory CA")
	listener := w.Home.Listen(t, "tcp", ":"+strconv.Itoa(webPort))
	server := &http.Server{
		Handler:   webHandler(),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{w.ca.Issue(t, testnet.Domain).Load(t)}},
	}
	go server.ServeTLS(listener, "", "")
	t.Cleanup(func() { server.Close() })
}

// webHandler answers as home's web server does:
//
//	/         a document of pageSize
//	/bytes/N  N bytes that no compression makes smaller
//	/ws       a websocket that sends back what it is sent
func webHandler() http.Handler {
	mux := http.NewServeMux()
	document := webDocument()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Length", strconv.Itoa(len(document)))
		io.WriteString(w, document)
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseUint(r.PathValue("n"), 10, 63)
		if err != nil {
			http.Error(w, "no number of bytes", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatUint(n, 10))
		io.CopyN(w, rand.NewChaCha8([32]byte{}), int64(n))
	})
	// A Server without a handshake of its own accepts any origin.
	mux.Handle("GET "+webSocketPath, websocket.Server{Handler: func(conn *websocket.Conn) { io.Copy(conn, conn) }})
	return mux
}

// objectPath is where the document's nth object is. Each has a path of its
// own, so that no cache can have it.
func objectPath(n int) string { return fmt.Sprintf("/bytes/%d?object=%d", objectSize, n) }

// webDocument is HTML that names its objects.
func webDocument() string {
	var text strings.Builder
	text.WriteString("<!DOCTYPE html>\n<title>Home</title>\n")
	for n := range objects {
		fmt.Fprintf(&text, "<img src=%q>\n", objectPath(n))
	}
	text.WriteString(strings.Repeat(" ", pageSize-text.Len()))
	return text.String()
}
