package server

import (
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"banger/internal/helper"
	"banger/internal/installed"
)

// Sandboxes of the units that the helper has systemd make.
const (
	vmDropIn   = "banger-vm-.service.d/10-banger.conf"
	fsckDropIn = "banger-fsck-.service.d/10-banger.conf"
	kvmDropIn  = "banger-kvm-.service.d/10-banger.conf"
)

// anyUID stands for a VM's uid.
const anyUID = -1

// commands are what the program can be beside the server.
var commands = [][2]string{
	{"banger-helper cleanup ID", "Run by systemd after every end of a VM's unit, with all rights: writes the exit record, then does what vm.cleanup does."},
	{"banger-helper fsck UID HOW NODE", "Run by systemd in banger-fsck-ID.service: becomes UID, then e2fsck."},
	{"banger-helper forget-network", "Run by `banger system uninstall`: removes bridge, firewall tables, and the rules told to Docker."},
	{"banger-helper policy", "Prints this."},
}

// programs are run with the helper's rights, by argv and with an empty or fixed
// environment; never a shell.
var programs = [][2]string{
	{strings.Join(nftPrograms, " or "), "-f -, with rules whose only variables are names and addresses made by the helper"},
}

// writePolicy writes everything that the helper can be asked, and what it may touch:
// its verbs from the table that serves them, its rights from the units.
func writePolicy(w io.Writer, units fs.FS) error {
	service, err := settings(units, "banger-helper.service")
	if err != nil {
		return err
	}
	p := &policy{}
	p.line("What banger-helper, the part of banger that has rights, can be asked and may touch.")
	p.line("`banger-helper policy` prints it.")

	p.head("Who may ask")
	p.line("root and the installation's owner, by the socket's mode and by the uid that the kernel tells of the caller.")
	p.line("The owner has at most %d requests at a time, %d in a burst and %d a second after that, each of at most %d bytes;", maxActive, burst, perSecond, maxBody)
	p.line("at most %d connections of each of them, and %s for a request to arrive.", maxConns, bodyTime)
	p.line("Every request is logged: verb, operation, VM, milliseconds, outcome.")

	p.head("Verbs")
	p.line("ID is always 12 lower-case hexadecimal digits; all names and paths are made from it.")
	for _, v := range (&Server{}).verbs() {
		p.line("")
		p.line("%s", v.name)
		p.wrap("    ", v.does)
		p.wrap("    ", "Takes: "+fields(v.in)+".")
		p.wrap("    ", "Answers: "+fields(v.out)+".")
		p.wrap("    ", "Touches: "+v.touches+".")
	}

	p.head("Commands")
	p.table(commands)
	p.head("Programs it runs")
	p.table(programs)
	p.head("Capabilities")
	p.values(service, "CapabilityBoundingSet")
	p.head("Devices")
	p.line("DevicePolicy=closed, and")
	p.values(service, "DeviceAllow")
	p.head("Places it may write")
	p.values(service, "ReadWritePaths")
	for _, s := range service {
		if dir, ok := strings.CutPrefix(s, "RuntimeDirectory="); ok {
			p.line("/run/%s", dir)
		}
	}
	p.line("of these it uses:")
	places := reflect.ValueOf(InstalledPlaces())
	for i := range places.NumField() {
		p.line("    %-6s %s", places.Type().Field(i).Name, places.Field(i))
	}

	p.head("Unit banger-helper.service")
	p.lines(service)
	if err := p.unit(units, "Socket banger-helper.socket", "banger-helper.socket"); err != nil {
		return err
	}
	if err := p.unit(units, "Unit banger-vm-ID.service, one for each VM", vmDropIn); err != nil {
		return err
	}
	p.line("and, for each VM:")
	s := &Server{record: installed.Record{Firecracker: "FIRECRACKER", Jailer: "JAILER"}, places: InstalledPlaces()}
	p.properties(s.vmUnit(vmmBuild{LaunchRequest: helper.LaunchRequest{ID: "ID"}, uid: anyUID}, "/proc/HELPER/fd/N").properties())
	p.line("BindReadOnlyPaths=%s of the host, in its jail, only if firecracker is not static", strings.Join(libraries, " "))
	p.line("CPUQuotaPerSecUSec=, and IOReadBandwidthMax= and IOWriteBandwidthMax= of its own disks, only if the VM was given a ceiling")
	if err := p.unit(units, "Unit banger-fsck-ID.service, while a disk is checked", fsckDropIn); err != nil {
		return err
	}
	p.line("and, for each check: the one disk of the VM in %s, read and write; at most %s, %d MiB, %d tasks.",
		fsckRoot, fsckTime, fsckMemory>>20, fsckTasks)
	if err := p.unit(units, "Unit banger-kvm-host.service, while doctor's test guest runs", kvmDropIn); err != nil {
		return err
	}
	p.line("and: /dev/kvm, open, as standard input; at most %s, %d MiB, %d tasks.", tryTime, tryMemory>>20, tryTasks)
	_, err = io.WriteString(w, p.b.String())
	return err
}

type policy struct{ b strings.Builder }

func (p *policy) line(format string, args ...any) { fmt.Fprintf(&p.b, format+"\n", args...) }

func (p *policy) head(title string) { p.line("\n%s\n%s", title, strings.Repeat("-", len(title))) }

// wrap breaks a text into lines that fit a page.
func (p *policy) wrap(indent, text string) {
	const width = 100
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			p.line("%s", line)
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	p.line("%s", line)
}

func (p *policy) table(rows [][2]string) {
	for _, row := range rows {
		p.line("%s", row[0])
		p.wrap("    ", row[1])
	}
}

func (p *policy) lines(all []string) {
	for _, l := range all {
		p.line("%s", l)
	}
}

// values prints one setting's values, a word a line.
func (p *policy) values(settings []string, key string) {
	for _, s := range settings {
		if value, ok := strings.CutPrefix(s, key+"="); ok {
			if key == "DeviceAllow" {
				p.line("%s", value)
				continue
			}
			p.lines(strings.Fields(value))
		}
	}
}

func (p *policy) unit(units fs.FS, title, name string) error {
	all, err := settings(units, name)
	if err != nil {
		return err
	}
	p.head(title)
	p.lines(all)
	return nil
}

func (p *policy) properties(all []property) {
	for _, prop := range all {
		switch value := prop.Value.Value().(type) {
		case []execCommand:
			argv := strings.Join(value[0].Args, " ")
			p.line("%s=%s", prop.Name, strings.ReplaceAll(argv, strconv.Itoa(anyUID), "UID"))
		case []deviceRule:
			p.line("%s=its own disks rw", prop.Name)
		case uint64:
			p.line("%s=from what the VM was given", prop.Name)
		default:
			p.line("%s=%v", prop.Name, value)
		}
	}
}

// settings are a unit's lines without remarks and without the section [Unit].
func settings(units fs.FS, name string) (out []string, err error) {
	raw, err := fs.ReadFile(units, name)
	if err != nil {
		return nil, err
	}
	section := ""
	for line := range strings.SplitSeq(string(raw), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = line
		case section == "[Service]" || section == "[Socket]":
			out = append(out, line)
		}
	}
	return out, nil
}

// fields lists a type's members as they are on the wire.
func fields(t reflect.Type) string {
	var all []string
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if options != "" {
			name = "[" + name + "]"
		}
		all = append(all, name+" "+wireType(f.Type))
	}
	if len(all) == 0 {
		return "nothing"
	}
	return strings.Join(all, ", ")
}

func wireType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return wireType(t.Elem())
	case reflect.Slice:
		return "list of " + wireType(t.Elem())
	case reflect.Struct:
		return "{" + fields(t) + "}"
	case reflect.Bool, reflect.String:
		return t.Kind().String()
	}
	return strings.TrimRightFunc(t.Kind().String(), unicode.IsDigit)
}
