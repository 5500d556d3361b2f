// Package kvm finds out whether KVM works by running a guest: there are KVMs that
// answer every question right and cannot. The guest is a page of code in 64-bit mode
// with paging, as Firecracker starts its own; it adds two numbers, stores the sum, and
// halts. See the kernel's Documentation/virt/kvm/api.rst for what follows.
package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of KVM.
const (
	kvmCreateVM        = 0xae01
	kvmGetVCPUMmapSize = 0xae04
	kvmCreateVCPU      = 0xae41
	kvmSetTSSAddr      = 0xae47
	kvmRun             = 0xae80
	kvmSetMemory       = 0x4020ae46
	kvmSetRegs         = 0x4090ae82
	kvmGetSregs        = 0x8138ae83
	kvmSetSregs        = 0x4138ae84

	kvmExitHalt = 5
)

// kvmExits names why a guest was left, where that tells something.
var kvmExits = map[uint32]string{2: "port access", 6: "memory access outside", 8: "a triple fault", 9: "a failed entry", 17: "KVM's internal error"}

func kvmExit(why uint32) string {
	if name, ok := kvmExits[why]; ok {
		return name
	}
	return fmt.Sprintf("exit %d", why)
}

// Where things are in the guest's memory.
const (
	guestMemory = 64 << 10
	guestPML4   = 0x1000
	guestPDPT   = 0x2000
	guestPD     = 0x3000
	guestCode   = 0x8000
	guestResult = 0x9000
)

// The two numbers, and the code that adds them.
const (
	guestAugend = 0x1122334455667788
	guestAddend = 0x0102030405060708
)

var adds = []byte{
	0x48, 0x01, 0xd8, // add rax, rbx
	0x48, 0x89, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, // mov [guestResult], rax
	0xf4, // hlt
}

// kvmMemory is struct kvm_userspace_memory_region.
type kvmMemory struct {
	slot, flags              uint32
	guest, size, hostAddress uint64
}

// kvmRegs is struct kvm_regs.
type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

// kvmSegment is struct kvm_segment.
type kvmSegment struct {
	base                            uint64
	limit                           uint32
	selector                        uint16
	kind, present, dpl, db, s, l, g uint8
	avl, unusable, padding          uint8
}

// kvmSregs is struct kvm_sregs.
type kvmSregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt kvmSegment
	gdt, idt                        struct {
		base    uint64
		limit   uint16
		padding [3]uint16
	}
	cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
	interrupts                              [4]uint64
}

// Try runs the guest on an open /dev/kvm, which whoever may not open it can be given.
// A guest that hangs keeps it from returning: it is for a process that can be killed.
func Try(kvm *os.File) error { return try(kvm, adds) }

func try(kvm *os.File, program []byte) (err error) {
	vm, err := kvmFile(kvm, kvmCreateVM)
	if err != nil {
		return fmt.Errorf("cannot create a VM: %w", err)
	}
	defer vm.Close()
	memory, err := unix.Mmap(-1, 0, guestMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("cannot get memory for a VM: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(memory)) }()
	fill(memory, program)
	if _, err := kvmCall(vm, kvmSetTSSAddr, 0xfffbd000); err != nil { // old Intel processors need three pages
		return fmt.Errorf("cannot prepare a VM: %w", err)
	}
	region := kvmMemory{size: guestMemory, hostAddress: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if err := kvmSet(vm, kvmSetMemory, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("cannot give memory to a VM: %w", err)
	}
	if err := runCPU(kvm, vm); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint64(memory[guestResult:]); got != guestAugend+guestAddend {
		return fmt.Errorf("a test guest computed %#x instead of %#x", got, uint64(guestAugend+guestAddend))
	}
	return nil
}

// fill writes the code, and page tables that map the first 2 MiB to
// themselves.
func fill(memory, program []byte) {
	const present, writable, large = 1, 2, 0x80
	binary.LittleEndian.PutUint64(memory[guestPML4:], guestPDPT|present|writable)
	binary.LittleEndian.PutUint64(memory[guestPDPT:], guestPD|present|writable)
	binary.LittleEndian.PutUint64(memory[guestPD:], present|writable|large)
	copy(memory[guestCode:], program)
}

func runCPU(kvm, vm *os.File) (err error) {
	cpu, err := kvmFile(vm, kvmCreateVCPU)
	if err != nil {
		return fmt.Errorf("cannot create a vCPU: %w", err)
	}
	defer cpu.Close()
	size, err := kvmCall(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("cannot map a vCPU: %w", err)
	}
	state, err := unix.Mmap(int(cpu.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("cannot map a vCPU: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(state)) }()
	if err := setRegisters(cpu); err != nil {
		return fmt.Errorf("cannot set a vCPU's registers: %w", err)
	}
	for {
		_, err := kvmCall(cpu, kvmRun, 0)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("cannot run a vCPU: %w", err)
		}
		// struct kvm_run: the reason for leaving the guest is at offset 8.
		if why := binary.LittleEndian.Uint32(state[8:]); why != kvmExitHalt {
			return fmt.Errorf("a test guest ended with %s instead of its last instruction", kvmExit(why))
		}
		return nil
	}
}

// setRegisters puts the processor into 64-bit mode, in front of the code.
func setRegisters(cpu *os.File) error {
	var s kvmSregs
	if err := kvmSet(cpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return err
	}
	const protection, extensionType, numericError, paging = 1 << 0, 1 << 4, 1 << 5, 1 << 31
	const physicalExtension = 1 << 5
	const longEnable, longActive = 1 << 8, 1 << 10
	s.cr0 = protection | extensionType | numericError | paging
	s.cr3 = guestPML4
	s.cr4 = physicalExtension
	s.efer = longEnable | longActive
	flat := kvmSegment{limit: 0xffffffff, present: 1, s: 1, g: 1}
	code, data := flat, flat
	code.selector, code.kind, code.l = 0x08, 0xb, 1
	data.selector, data.kind, data.db = 0x10, 0x3, 1
	s.cs = code
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	if err := kvmSet(cpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return err
	}
	const alwaysOne = 1 << 1
	return kvmSet(cpu, kvmSetRegs, unsafe.Pointer(&kvmRegs{rax: guestAugend, rbx: guestAddend, rip: guestCode, rflags: alwaysOne}))
}

func kvmCall(f *os.File, request uint, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func kvmSet(f *os.File, request uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

func kvmFile(f *os.File, request uint) (*os.File, error) {
	fd, err := kvmCall(f, request, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "kvm"), nil
}
