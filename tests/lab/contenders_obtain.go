package lab

import (
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// noInstallEnv keeps the lab from installing packages, as it keeps
// tests/run.sh.
const noInstallEnv = "HOMEWARD_NO_INSTALL"

// buildTool builds main packages of one of the modules in tools/, which are
// no part of Homeward's own, and returns the folder that the programs are in.
// What has been built once from the same files by the same Go is kept.
func buildTool(name string, packages ...string) (folder string, err error) {
	source := filepath.Join(testnet.Root(), "tests", "lab", "tools", name)
	key, err := toolKey(source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "homeward-lab")
	folder = filepath.Join(cache, name+"-"+key)
	if _, err := os.Stat(folder); err == nil {
		return folder, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Built aside and renamed: several labs may run side by side.
	building, err := os.MkdirTemp(cache, name+"-building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(building)
	cmd := exec.Command("go", append([]string{"build", "-o", building + "/"}, packages...)...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	if err := os.Rename(building, folder); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return folder, nil
}

// toolKey changes whenever a tool's files or the Go that builds them do.
func toolKey(source string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version())
	err := fs.WalkDir(os.DirFS(source), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(source, name))
		fmt.Fprintf(hash, "%s %d\n%s", name, len(content), content)
		return err
	})
	return fmt.Sprintf("%x", hash.Sum(nil)[:6]), err
}

// builtFrom says which versions of the given modules are in a Go program, as
// it says itself.
func builtFrom(program string, modules ...string) (string, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "", fmt.Errorf("reading what %s is built from: %w", program, err)
	}
	var versions []string
	for _, wanted := range modules {
		for _, module := range append(info.Deps, &info.Main) {
			if module.Path == wanted {
				versions = append(versions, path.Base(wanted)+" "+module.Version)
			}
		}
	}
	if len(versions) != len(modules) {
		return "", fmt.Errorf("%s is not built from all of %s", program, strings.Join(modules, ", "))
	}
	return strings.Join(versions, ", ") + ", " + info.GoVersion, nil
}

// install makes sure of a program of a Debian package of the same name, and
// returns the package's name and version.
func install(name string) (version string, err error) { return installFrom(name, name) }

// installFrom is install for a package whose name is not its program's.
func installFrom(name, program string) (version string, err error) {
	if _, err := testnet.Program(program); err != nil {
		if err := installPackage(name); err != nil {
			return "", err
		}
	}
	out, err := exec.Command("dpkg-query", "--show", "--showformat", "Debian's ${Package} ${Version}", name).Output()
	if err != nil {
		return "", fmt.Errorf("%s is no Debian package here, so its version is not known: %w", name, err)
	}
	return string(out), nil
}

// policyFile is what invoke-rc.d asks whether it may start a service.
const policyFile = "/usr/sbin/policy-rc.d"

// installPackage installs a package and starts no service for it.
func installPackage(name string) error {
	if os.Geteuid() != 0 || os.Getenv(noInstallEnv) != "" {
		return fmt.Errorf("%s is not installed, and the lab may not install it", name)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("%s is not installed, and there is no apt-get", name)
	}
	if _, err := os.Stat(policyFile); errors.Is(err, fs.ErrNotExist) {
		// 101 forbids to start anything.
		if err := os.WriteFile(policyFile, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer os.Remove(policyFile)
	}
	var out []byte
	var err error
	// A list of packages that is not there or too old is the usual reason for
	// the first to fail.
	for _, command := range []string{"install", "update", "install"} {
		args := []string{command, "-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=120"}
		if command == "install" {
			args = append(args, "--no-install-recommends", name)
		}
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err = cmd.CombinedOutput()
		if err == nil && command == "install" {
			return nil
		}
	}
	return fmt.Errorf("installing %s: %w\n%s", name, err, out)
}

// withoutProxy makes a command go its own way where the machine has an HTTP
// proxy configured, which some contenders would go through.
func withoutProxy(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return strings.HasSuffix(strings.ToLower(name), "_proxy")
	})
	return cmd
}
