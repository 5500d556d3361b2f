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

// verbTexts say what each verb does, in whole sentences, and what it touches.
var verbTexts = map[string]struct{ does, touches string }{
	"vm.reserve": {"Gives the VM a slot, from which its uid and address follow, or tells the one it has.",
		"the registry of slots"},
	"vm.release": {"Cleans up like vm.cleanup, then frees the slot. Refused while the VM's unit lives.",
		"the registry of slots, the VM's exit record, and what vm.cleanup touches"},
	"vm.attach": {"Makes the VM's disks of files: base and overlay give the root disk, work the work disk. The paths are images/ID/rootfs.ext4 or in vms/ID, below the owner's state directory: regular files of the owner, reached through no symlink and no FUSE, and opened once.",
		"free loop devices, the device-mapper devices fc-rootfs-ID and fc-work-ID"},
	"vm.grow": {"Makes the VM's work disk as large as its file has become.",
		"the loop device and the device-mapper device of that disk"},
	"vm.fsck": {"Has e2fsck look at a disk of a VM that does not run, as the VM's uid, in a unit without rights; see the unit banger-fsck-ID.service below.",
		"the VM's jail directory, a node of the one disk in it, the unit"},
	"vm.launch": {"Makes the jail with kernel, initrd and disk nodes, an empty network namespace with one tap, and starts the VM's unit. Kernel and initrd are named by sha256. Refused if there is a jail, or if the VM has a unit.",
		"the VM's jail directory, its unit, its namespace; the API socket's rights, for the owner"},
	"vm.handover": {"Takes the directories of its jail from the VMM, which has bound its sockets; pins the guest's MAC and address to its port, then moves the tap to the bridge; disks are set to vanish with Firecracker.",
		"owner and rights of what the VMM made in its jail, the sockets' rights; the tap, the bridge, the firewall tables banger; flags of the VM's disks"},
	"vm.kill": {"Stops the VM's unit, with SIGKILL, and waits for its end; with no_wait, not for that.",
		"the unit banger-vm-ID.service"},
	"vm.cleanup": {"Removes what the VM has in the kernel and in the jails. Refused while its unit lives. Calling it again changes nothing.",
		"the VM's disks, jail directory, tap, firewall elements, and the unit of vm.fsck"},
	"blob.put": {"Copies a file below the owner's state directory, hashes the copy, and keeps it under that name, for root and read only. At most 1 GiB each, 16 GiB and 4096 in all; through no symlink and no FUSE.",
		"the store of blobs"},
	"blob.gc": {"Removes the blobs that are not to be kept and are in no jail.",
		"the store of blobs"},
	"bridge.ensure": {"Makes bridge, address and firewall tables what the installation's record says, routes names of the zone vm to the bridge, and tells Docker or firewalld of it where they run.",
		"the bridge, the firewall tables banger, Docker's chain DOCKER-USER, firewalld's zone of the bridge, systemd-resolved's settings of the bridge"},
	"network.apply": {"Says which guests have NAT and which may talk to each other; the guests' addresses follow from their slots. With whole, all others have neither.",
		"elements of the firewall tables banger, isolation of the VMs' ports"},
	"host.check": {"Tells what root alone can see of the host; has a test guest of one page run on KVM, in a unit without rights; see the unit banger-kvm-host.service below.",
		"that unit"},
}

// anyUID stands for a VM's uid.
const anyUID = -1

// commands are what the program can be beside the server.
var commands = [][2]string{
	{"banger-helper cleanup ID", "Run by systemd after every end of a VM's unit, with all rights: writes the exit record, then does what vm.cleanup does."},
	{"banger-helper fsck UID HOW NODE", "Run by systemd in banger-fsck-ID.service: becomes UID, then e2fsck."},
	{"banger-helper forget-network", "Run by `banger system uninstall`, and by `system install` when it changes the network: removes bridge, firewall tables, the rules told to Docker, and the bridge from the zone of firewalld."},
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
		p.wrap("    ", verbTexts[v.name].does)
		p.wrap("    ", "Takes: "+fields(v.in)+".")
		p.wrap("    ", "Answers: "+fields(v.out)+".")
		p.wrap("    ", "Touches: "+verbTexts[v.name].touches+".")
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
