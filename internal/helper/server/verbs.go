package server

import (
	"context"
	"net/http"
	"reflect"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/jsonhttp"
)

// verb is one thing the helper can be asked for, with what people are told of
// it (policy.go), so that neither can be changed without the other in sight.
type verb struct {
	name          string
	does, touches string
	in, out       reflect.Type
	handler       http.Handler
}

// verbs are all there are.
func (s *Server) verbs() []verb {
	byVM := func(r helper.VMRequest) string { return r.ID }
	return []verb{
		newVerb("vm.reserve", func(r helper.ReserveRequest) string { return r.ID }, s.reserve,
			"Gives the VM a slot, from which its uid and address follow, or tells the one it has.",
			"the registry of slots"),
		newVerb("vm.release", byVM, s.release,
			"Cleans up like vm.cleanup, then frees the slot. Refused while the VM's unit lives.",
			"the registry of slots, the VM's exit record, and what vm.cleanup touches"),
		newVerb("vm.attach", func(r helper.AttachRequest) string { return r.ID }, s.attach,
			"Makes the VM's disks of files: base and overlay give the root disk, work the work disk. The paths are below the owner's state directory, regular files of the owner, reached through no symlink and opened once.",
			"free loop devices, the device-mapper devices fc-rootfs-ID and fc-work-ID"),
		newVerb("vm.grow", func(r helper.GrowRequest) string { return r.ID }, s.grow,
			"Makes the VM's work disk as large as its file has become.",
			"the loop device and the device-mapper device of that disk"),
		newVerb("vm.fsck", func(r helper.FsckRequest) string { return r.ID }, s.fsck,
			"Has e2fsck look at a disk of a VM that does not run, as the VM's uid, in a unit without rights; see the unit banger-fsck-ID.service below.",
			"the VM's jail directory, a node of the one disk in it, the unit"),
		newVerb("vm.launch", func(r helper.LaunchRequest) string { return r.ID }, s.launch,
			"Makes the jail with kernel, initrd and disk nodes, an empty network namespace with one tap, and starts the VM's unit. Kernel and initrd are named by sha256. Refused if there is a jail, or if the VM has a unit.",
			"the VM's jail directory, its unit, its namespace; the API socket's rights, for the owner"),
		newVerb("vm.handover", byVM, s.handover,
			"Takes the directories of its jail from the VMM, which has bound its sockets; pins the guest's MAC and address to its port, then moves the tap to the bridge; disks are set to vanish with Firecracker.",
			"owner and rights of what the VMM made in its jail, the sockets' rights; the tap, the bridge, the firewall tables banger; flags of the VM's disks"),
		newVerb("vm.kill", func(r helper.KillRequest) string { return r.ID }, s.kill,
			"Stops the VM's unit, with SIGKILL, and waits for its end; with no_wait, not for that.",
			"the unit banger-vm-ID.service"),
		newVerb("vm.cleanup", byVM, s.cleanup,
			"Removes what the VM has in the kernel and in the jails. Refused while its unit lives. Calling it again changes nothing.",
			"the VM's disks, jail directory, tap, firewall elements, and the unit of vm.fsck"),
		newVerb("blob.put", nil, s.putBlob,
			"Copies a file below the owner's state directory, hashes the copy, and keeps it under that name, for root and read only. At most 1 GiB each.",
			"the store of blobs"),
		newVerb("blob.gc", nil, s.gcBlobs,
			"Removes the blobs that are not to be kept and are in no jail.",
			"the store of blobs"),
		newVerb("bridge.ensure", nil, s.ensureBridge,
			"Makes bridge, address and firewall tables what the installation's record says, routes names of the zone vm to the bridge, and tells Docker or firewalld of it where they run.",
			"the bridge, the firewall tables banger, Docker's chain DOCKER-USER, firewalld's zone of the bridge, systemd-resolved's settings of the bridge"),
		newVerb("network.apply", nil, s.applyNetwork,
			"Says which guests have NAT and which may talk to each other; the guests' addresses follow from their slots. With whole, all others have neither.",
			"elements of the firewall tables banger, isolation of the VMs' ports"),
		newVerb("host.check", nil, s.hostCheck,
			"Tells what root alone can see of the host; has a test guest of one page run on KVM, in a unit without rights; see the unit banger-kvm-host.service below.",
			"that unit"),
	}
}

// Handler returns the verbs: the whole of what the helper can be asked.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, v := range s.verbs() {
		mux.Handle("POST /v1/"+v.name, v.handler)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		jsonhttp.WriteError(w, api.NotFound("there is no such verb"))
	})
	return s.limit(mux)
}

func (s *Server) reserve(_ context.Context, r helper.ReserveRequest) (helper.Slot, error) {
	return s.slots.reserve(r.ID)
}

// newVerb makes one verb. Where the request names a VM, its id is checked
// before anything else is looked at.
func newVerb[In, Out any](name string, id func(In) string, f func(context.Context, In) (Out, error), does, touches string) verb {
	handler := jsonhttp.Handle(func(ctx context.Context, in In) (out Out, err error) {
		entry := entryOf(ctx)
		entry.verb, entry.op = name, jsonhttp.Operation(ctx)
		defer func() { entry.err = err }()
		if id != nil {
			if err := checkID(id(in)); err != nil {
				return out, err
			}
			entry.id = id(in)
		}
		if out, err = f(ctx, in); err == nil {
			err = fault.Point(ctx, "helper."+name)
		}
		return out, err
	})
	return verb{name: name, does: does, touches: touches, handler: handler, in: reflect.TypeFor[In](), out: reflect.TypeFor[Out]()}
}
