package services

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Apache is the home's web server, with sites by name on ports 80 and 443:
//
//	wrong.invalid             the first and so the default: must never be seen
//	example.duckdns.org       /          a page that names the site
//	                          /old       an absolute redirect to /new (Location has the Host)
//	                          /folder    one by mod_dir, to /folder/
//	                          /dav/      WebDAV, for PUT and GET of any size
//	                          /ws        a WebSocket behind mod_proxy, if there is one
//	                          /seen      the request's Host and X-Forwarded headers
//	sub.example.duckdns.org   the same, with a page and a certificate of its own
type Apache struct {
	*testnet.Process

	// Folder has the sites' files in Folder/<name>/.
	Folder string

	// Certificates are the sites', by name.
	Certificates map[string]testnet.Certificate

	// AccessLog is home's own, with the client as home sees it.
	AccessLog string
}

// apacheModules are the modules that the sites use.
var apacheModules = []string{
	"mpm_event", "authz_core", "unixd", "mime", "dir", "alias", "headers", "log_config",
	"ssl", "socache_shmcb", "http2", "dav", "dav_fs", "setenvif", "expr",
	"proxy", "proxy_http", "proxy_wstunnel",
}

// ApacheLogs is longer than Apache takes to log a request: some by HTTP/2 it logs when
// it closes the connection, which has been idle for 5 s then.
const ApacheLogs = 30 * time.Second

const apacheModuleFolder = "/usr/lib/apache2/modules"

// StartApache starts Apache in a namespace with certificates from a CA, the
// first of which is for a wrong name. A request for /ws goes to a WebSocket
// server on port 8081 of the namespace's loopback.
func StartApache(t testing.TB, namespace *testnet.Namespace, ca *testnet.CA) *Apache {
	t.Helper()
	testnet.Need(t, "apache2")
	a := &Apache{Folder: testnet.Folder(t), Certificates: make(map[string]testnet.Certificate)}
	a.AccessLog = filepath.Join(a.Folder, "access.log")
	locks := filepath.Join(a.Folder, "locks")
	makeOpenFolder(t, locks)

	config := fmt.Sprintf(`
ServerRoot %[1]s
ServerName wrong.invalid
PidFile %[1]s/httpd.pid
DefaultRuntimeDir %[1]s
Mutex file:%[2]s
ErrorLog %[1]s/error.log
LogFormat "%%h %%v \"%%r\" %%>s %%b" seen
CustomLog %[1]s/access.log seen
User www-data
Group www-data
StartServers 2
ServerLimit 4
Listen 80
Listen 443
DavLockDB %[2]s/dav
SSLSessionCache none
TypesConfig /dev/null
`, a.Folder, locks)
	for _, module := range apacheModules {
		path := filepath.Join(apacheModuleFolder, "mod_"+module+".so")
		// Some are built in, depending on the distribution.
		if _, err := os.Stat(path); err == nil {
			config += fmt.Sprintf("LoadModule %s_module %s\n", module, path)
		}
	}
	for _, site := range []string{"wrong.invalid", testnet.Domain, testnet.Subdomain} {
		a.Certificates[site] = ca.Issue(t, site)
		config += a.site(t, site)
	}
	file := filepath.Join(a.Folder, "httpd.conf")
	testnet.WriteFile(t, file, []byte(config), 0o644)
	if out, err := namespace.Command("apache2", "-t", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("checking Apache's configuration: %v\n%s", err, out)
	}
	a.Process = testnet.Start(t, "apache", namespace.Command("apache2", "-f", file, "-DFOREGROUND"))
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(a.Folder, "error.log"))
			t.Logf("Apache's error log:\n%s", log)
		}
	})
	testnet.Eventually(t, 10*time.Second, func() error { return reachable(namespace, "127.0.0.1:443") })
	return a
}

// site makes a site's folder and returns its virtual hosts.
func (a *Apache) site(t testing.TB, name string) string {
	t.Helper()
	root, certificate := filepath.Join(a.Folder, name), a.Certificates[name]
	for _, folder := range []string{"", "folder", "dav"} {
		makeOpenFolder(t, filepath.Join(root, folder))
	}
	testnet.WriteFile(t, filepath.Join(root, "index.html"), []byte("this is "+name+"\n"), 0o644)
	testnet.WriteFile(t, filepath.Join(root, "folder", "index.html"), []byte("folder of "+name+"\n"), 0o644)
	testnet.WriteFile(t, filepath.Join(root, "seen"), nil, 0o644)

	body := fmt.Sprintf(`
	ServerName %[1]s
	DocumentRoot %[2]s
	UseCanonicalName Off
	Redirect /old /new
	ProxyPass /ws ws://127.0.0.1:8081/
	Protocols h2 http/1.1
	<Directory %[2]s>
		Require all granted
	</Directory>
	<Location /dav>
		Dav On
	</Location>
	<Location /seen>
		Header always set Seen-Host "expr=%%{HTTP_HOST}"
		Header always set Seen-Forwarded "expr=%%{HTTP:X-Forwarded-For}, %%{HTTP:X-Forwarded-Proto}, %%{HTTP:X-Forwarded-Host}"
		Header always set Seen-Site %[1]s
	</Location>
`, name, root)
	return fmt.Sprintf(`
<VirtualHost *:80>%[1]s</VirtualHost>
<VirtualHost *:443>%[1]s
	SSLEngine on
	SSLCertificateFile %[2]s
	SSLCertificateKeyFile %[3]s
</VirtualHost>
`, body, certificate.Cert, certificate.Key)
}

// makeOpenFolder makes a folder that a server without privilege may write to.
func makeOpenFolder(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
}
