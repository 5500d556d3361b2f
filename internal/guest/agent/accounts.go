package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// account is a line of the image's passwd file.
type account struct {
	name        string
	uid, gid    uint32
	groups      []uint32 // supplementary
	home, shell string
}

// accountFiles is the directory of passwd and group; only tests have another
// than /etc.
type accountFiles string

// find looks an account up. root exists in every image, also in one that
// brings no account files.
func (dir accountFiles) find(name string) (account, error) {
	a, err := dir.passwd(name)
	if err != nil {
		return account{}, err
	}
	if a.uid == 0 {
		return a, nil // root needs no groups
	}
	a.groups, err = dir.groupsOf(name)
	return a, err
}

func (dir accountFiles) passwd(name string) (account, error) {
	lines, err := dir.lines("passwd", 7)
	if err != nil {
		return account{}, err
	}
	for _, f := range lines {
		if f[0] != name {
			continue
		}
		uid, uidErr := strconv.ParseUint(f[2], 10, 32)
		gid, gidErr := strconv.ParseUint(f[3], 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return account{}, fmt.Errorf("cannot read the account of %s: %w", name, err)
		}
		a := account{name: name, uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		if a.home == "" {
			a.home = "/"
		}
		if a.shell == "" {
			a.shell = fallbackShell
		}
		return a, nil
	}
	if name == "root" {
		return account{name: "root", home: "/root", shell: fallbackShell}, nil
	}
	return account{}, fmt.Errorf("no user %q in this image", name)
}

func (dir accountFiles) groupsOf(name string) ([]uint32, error) {
	lines, err := dir.lines("group", 4)
	if err != nil {
		return nil, err
	}
	var groups []uint32
	for _, f := range lines {
		if !slices.Contains(strings.Split(f[3], ","), name) {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil { // a bad line of the image gives no right
			groups = append(groups, uint32(gid))
		}
	}
	return groups, nil
}

// lines returns the fields of the lines that have as many as they should.
func (dir accountFiles) lines(file string, fields int) ([][]string, error) {
	f, err := os.Open(filepath.Join(string(dir), file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read accounts: %w", err)
	}
	defer f.Close()
	var lines [][]string
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20) // a group may have many members
	for scan.Scan() {
		if l := strings.Split(scan.Text(), ":"); len(l) == fields {
			lines = append(lines, l)
		}
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("cannot read accounts: %w", err)
	}
	return lines, nil
}
