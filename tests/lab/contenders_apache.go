package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

const (
	apacheProgram      = "apache2"
	apacheModuleFolder = "/usr/lib/apache2/modules"
)

// apacheModules are those that a reverse proxy for HTTPS needs. Any of them
// may be built in.
var apacheModules = []string{"mpm_event", "authz_core", "unixd", "ssl", "socache_shmcb", "http2", "proxy", "proxy_http"}

// startApache starts the reverse proxy that the user of this project had on
// the relay, with what Debian has for the number of processes and threads.
// Home's certificate is not looked at, as there.
func startApache(t testing.TB, w *World) *testnet.Process {
	t.Helper()
	folder := testnet.Folder(t)
	locks := filepath.Join(folder, "locks")
	if err := os.Mkdir(locks, 0o777); err != nil {
		t.Fatal(err)
	}
	// Apache's own user makes files there, and the umask is not ours to know.
	if err := os.Chmod(locks, 0o777); err != nil {
		t.Fatal(err)
	}
	certificate := w.ca.Issue(t, testnet.Domain)
	config := fmt.Sprintf(`ServerRoot %[1]s
ServerName %[4]s
PidFile %[1]s/httpd.pid
DefaultRuntimeDir %[1]s
Mutex file:%[2]s
ErrorLog %[1]s/error.log
User www-data
Group www-data
Timeout 300
Listen %[3]d
`, folder, locks, webPort, testnet.Domain)
	for _, module := range apacheModules {
		path := filepath.Join(apacheModuleFolder, "mod_"+module+".so")
		if _, err := os.Stat(path); err == nil {
			config += fmt.Sprintf("LoadModule %s_module %s\n", module, path)
		}
	}
	config += fmt.Sprintf(`StartServers 2
MinSpareThreads 25
MaxSpareThreads 75
ThreadLimit 64
ThreadsPerChild 25
MaxRequestWorkers 150
SSLSessionCache shmcb:%[1]s/sessions(512000)
<VirtualHost *:%[2]d>
	ServerName %[3]s
	Protocols h2 http/1.1
	SSLEngine on
	SSLCertificateFile %[4]s
	SSLCertificateKeyFile %[5]s
	SSLProxyEngine on
	SSLProxyVerify none
	SSLProxyCheckPeerCN off
	SSLProxyCheckPeerName off
	ProxyPreserveHost On
	ProxyPass / https://%[6]s/ upgrade=websocket
	ProxyPassReverse / https://%[6]s/
</VirtualHost>
`, folder, webPort, testnet.Domain, certificate.Cert, certificate.Key, testnet.HomeTunnelIP)
	file := filepath.Join(folder, "httpd.conf")
	testnet.WriteFile(t, file, []byte(config), 0o644)
	w.Relay.Output(t, apacheProgram, "-t", "-f", file)
	apache := testnet.Start(t, "apache", w.Relay.Command(apacheProgram, "-f", file, "-DFOREGROUND"))
	t.Cleanup(func() {
		if t.Failed() {
			log, err := os.ReadFile(filepath.Join(folder, "error.log"))
			t.Logf("Apache's error log (%v):\n%s", err, log)
		}
	})
	testnet.Eventually(t, 10*time.Second, func() error {
		conn, err := w.Relay.Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", webPort))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return apache
}
