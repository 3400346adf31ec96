package main

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/homeward-relay/homeward"

// shell is a command of this repository, run from its root.
func shell(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("build.sh wants a POSIX shell")
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = ".."
	return cmd
}

// made says whether the file that an environment variable names was built from
// the main package that is asked for.
func made(env, mainPackage string) (path string, ok bool) {
	path = os.Getenv(env)
	if path == "" {
		return "", false
	}
	info, err := buildinfo.ReadFile(path)
	return path, err == nil && info.Path == mainPackage
}

// byXcaddy returns ./caddy, or what the tests were given for it, which is what
// users run.
func byXcaddy(t *testing.T) string {
	t.Helper()
	if path, ok := made("HOMEWARD_CADDY_FAST", "caddy"); ok {
		return path
	}
	if out, err := shell(t, "xcaddy-build/build.sh").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	path, err := filepath.Abs("../caddy")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// byGo returns what `go build ./xcaddy-build` makes.
func byGo(t *testing.T) string {
	t.Helper()
	if path, ok := made("HOMEWARD_CADDY", module+"/xcaddy-build"); ok {
		return path
	}
	path := filepath.Join(t.TempDir(), "caddy")
	if out, err := shell(t, "go", "build", "-o", path, "./xcaddy-build").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := shell(t, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.Bytes())
	}
	return string(out)
}

// ours is how Caddy lists our own modules: in one build they are of a module
// that replaces another, and in the other of the main module, which has neither
// path nor version there.
var ours = regexp.MustCompile(`(?m)^([a-z][\w.]*)(?: v0\.0\.0-\S+ ` + regexp.QuoteMeta(module) + ` => \S+| *)$`)

func TestSameModules(t *testing.T) {
	if testing.Short() {
		t.Skip("builds Caddy twice")
	}
	x, g := byXcaddy(t), byGo(t)
	args := []string{"list-modules", "--packages", "--versions"}
	lists := make([][]string, 2)
	for i, caddy := range []string{x, g} {
		lists[i] = strings.Split(ours.ReplaceAllString(output(t, caddy, args...), "$1 "+module), "\n")
	}
	for _, line := range lists[0] {
		if !slices.Contains(lists[1], line) {
			t.Errorf("only by xcaddy: %s", line)
		}
	}
	for _, line := range lists[1] {
		if !slices.Contains(lists[0], line) {
			t.Errorf("only by go build: %s", line)
		}
	}
	for _, id := range []string{
		"wireguard", "layer4.handlers.wireguard", "http.reverse_proxy.transport.wireguard", "caddy.logging.encoders.combined",
		"caddy.listeners.congestion_control", "tls.get_certificate.file",
	} {
		if !slices.Contains(lists[0], id+" "+module) {
			t.Errorf("no module %s", id)
		}
	}

	// Of all that is linked, not only of what has a Caddy module in it.
	versions := make([]map[string]string, 2)
	for i, file := range []string{x, g} {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		versions[i] = map[string]string{}
		for _, dep := range info.Deps {
			if dep.Path != module {
				versions[i][dep.Path] = dep.Version + " " + dep.Sum
			}
		}
	}
	for path, v := range versions[0] {
		// What only a plain build has are the databases left out by xcaddy.
		if versions[1][path] != v {
			t.Errorf("%s: %s by xcaddy, %q by go build", path, v, versions[1][path])
		}
	}

	want := strings.Fields(output(t, "go", "list", "-m", "github.com/caddyserver/caddy/v2"))[1]
	for _, file := range []string{x, g} {
		if got := output(t, file, "version"); !strings.Contains(got, want+" h1:") {
			t.Errorf("%s version says %q, want %s and its hash in it", file, got, want)
		}
	}
}

// TestRefusals has build.sh say what is wrong and what to do, before it builds.
func TestRefusals(t *testing.T) {
	// The tools that it uses, without a Go.
	tools := t.TempDir()
	for _, name := range []string{"sh", "sed", "dirname", "cut", "mktemp", "rm", "tail", "cat"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	old := t.TempDir()
	script := "#!/bin/sh\ncase $1 in\nversion) echo 'go version go1.22.1 linux/amd64' ;;\nenv) echo go1.22.1 ;;\n" +
		"*) echo 'go: go.mod requires go >= 1.26.3 (running go 1.22.1; GOTOOLCHAIN=local)' >&2; exit 1 ;;\nesac\n"
	if err := os.WriteFile(filepath.Join(old, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		env  []string
		want []string
	}{
		{name: "no platform", args: []string{"arm64"}, want: []string{`"arm64" is no target`, "linux/arm64"}},
		{name: "unknown platform", args: []string{"linux/z80"}, want: []string{`"linux/z80" is no target`, "linux/arm64"}},
		{name: "path", args: []string{"/etc"}, want: []string{`"/etc" is no target`}},
		{name: "option", args: []string{"--fast"}, want: []string{`"--fast" is no target`}},
		{name: "unknown variant", args: []string{"linux/arm/9"}, want: []string{`"linux/arm/9" is no target`, "5, 6 and 7"}},
		{name: "variant of what has none", args: []string{"linux/arm64", "linux/arm64/8"}, want: []string{`"linux/arm64/8" is no target`}},
		{name: "no Go", env: []string{"PATH=" + tools}, want: []string{"there is no Go here", "https://go.dev/dl/"}},
		{
			name: "old Go", env: []string{"PATH=" + old + ":" + tools},
			want: []string{"this needs Go 1.26", "here is go1.22.1", "GOTOOLCHAIN=auto"},
		},
		{
			name: "offline, nothing fetched yet",
			env:  []string{"GOPROXY=off", "GOFLAGS=-modcacherw", "GOMODCACHE=" + t.TempDir()},
			want: []string{"cannot fetch a module", "Offline?"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := shell(t, "xcaddy-build/build.sh", tt.args...)
			cmd.Env = append(os.Environ(), tt.env...)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Error("it went on")
			}
			for _, want := range tt.want {
				if !bytes.Contains(out, []byte(want)) {
					t.Errorf("want %q in:\n%s", want, out)
				}
			}
		})
	}
}

// TestServiceUnit has systemd itself read the unit and judge how far it is shut in.
func TestServiceUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("left out: needs systemd-analyze, which is not installed")
	}
	unit, err := os.ReadFile("homeward.service")
	if err != nil {
		t.Fatal(err)
	}
	// verify wants a program that is there, and the user of this machine.
	unit = regexp.MustCompile(`(?m)^(Exec\w+=)\S+`).ReplaceAll(unit, []byte("${1}/bin/true"))
	file := filepath.Join(t.TempDir(), "homeward.service")
	if err := os.WriteFile(file, unit, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := shell(t, analyze, "verify", file).CombinedOutput(); err != nil || bytes.Contains(out, []byte("homeward.service")) {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err := shell(t, analyze, "security", "--offline=true", "--threshold=30", file).CombinedOutput()
	if err != nil {
		t.Errorf("exposure above 3.0: %v\n%s", err, out)
	}
}

// TestAppArmorProfile has AppArmor itself read the profile, and compares it with
// the unit.
func TestAppArmorProfile(t *testing.T) {
	profile, err := os.ReadFile("apparmor/homeward")
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("homeward.service")
	if err != nil {
		t.Fatal(err)
	}
	attached := regexp.MustCompile(`(?m)^profile homeward (\S+) flags=\(unconfined\) \{\n  userns,$`).FindSubmatch(profile)
	started := regexp.MustCompile(`(?m)^ExecStart=(\S+)`).FindSubmatch(unit)
	if attached == nil || started == nil || !bytes.Equal(attached[1], started[1]) {
		t.Errorf("the profile is for %q, and the unit starts %q", attached, started)
	}

	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("left out: needs apparmor_parser, which is not installed")
	}
	version := output(t, parser, "--version")
	if old := regexp.MustCompile(`version [1-3]\.`).MatchString(version); old {
		// It does not know the rule, nor the release that brought it.
		profile = regexp.MustCompile(`(?m)^abi .*$|^  userns,$`).ReplaceAll(profile, nil)
	}
	file := filepath.Join(t.TempDir(), "homeward")
	if err := os.WriteFile(file, profile, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := shell(t, parser, "--skip-cache", "-Q", "--skip-kernel-load", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
