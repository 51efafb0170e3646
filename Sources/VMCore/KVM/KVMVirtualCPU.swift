import CKVM

/// A KVM vCPU descriptor with its shared `kvm_run` area.
///
/// Source: Linux, Documentation/virt/kvm/api.rst, "vcpu ioctls".
final class KVMVirtualCPU {
    let descriptor: FileDescriptor
    let run: UnsafeMutablePointer<kvm_run>
    private let mapSize: Int

    init(descriptor: FileDescriptor, mapSize: Int) throws(SystemCallError) {
        let map = mmap(nil, mapSize, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.rawValue, 0)
        guard let map, map != UnsafeMutableRawPointer(bitPattern: -1) else { throw SystemCallError("mmap kvm_run") }
        self.descriptor = descriptor
        self.mapSize = mapSize
        run = map.assumingMemoryBound(to: kvm_run.self)
    }

    deinit {
        // A kick that is on its way may still write here: the signal handler knows nothing but the address. So the
        // place stays mapped; it costs address space only.
        _ = mmap(run, mapSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0)
    }

    private func get<T>(_ name: String, _ request: UInt, _ empty: T) throws(SystemCallError) -> T {
        var value = empty
        try descriptor.control(name, request, updating: &value)
        return value
    }

    private func set<T>(_ name: String, _ request: UInt, _ value: T) throws(SystemCallError) {
        var value = value
        try descriptor.control(name, request, updating: &value)
    }

    func registers() throws(SystemCallError) -> kvm_regs { try get("KVM_GET_REGS", ckvm_GET_REGS, kvm_regs()) }
    func set(_ value: kvm_regs) throws(SystemCallError) { try set("KVM_SET_REGS", ckvm_SET_REGS, value) }

    func specialRegisters() throws(SystemCallError) -> kvm_sregs {
        try get("KVM_GET_SREGS", ckvm_GET_SREGS, kvm_sregs())
    }
    func set(_ value: kvm_sregs) throws(SystemCallError) { try set("KVM_SET_SREGS", ckvm_SET_SREGS, value) }

    func events() throws(SystemCallError) -> kvm_vcpu_events {
        try get("KVM_GET_VCPU_EVENTS", ckvm_GET_VCPU_EVENTS, kvm_vcpu_events())
    }
    func set(_ value: kvm_vcpu_events) throws(SystemCallError) {
        try set("KVM_SET_VCPU_EVENTS", ckvm_SET_VCPU_EVENTS, value)
    }

    func debugRegisters() throws(SystemCallError) -> kvm_debugregs {
        try get("KVM_GET_DEBUGREGS", ckvm_GET_DEBUGREGS, kvm_debugregs())
    }
    func set(_ value: kvm_debugregs) throws(SystemCallError) {
        try set("KVM_SET_DEBUGREGS", ckvm_SET_DEBUGREGS, value)
    }

    func setMPState(_ value: UInt32) throws(SystemCallError) {
        try set("KVM_SET_MP_STATE", ckvm_SET_MP_STATE, kvm_mp_state(mp_state: value))
    }

    func extendedControl() throws(SystemCallError) -> kvm_xcrs { try get("KVM_GET_XCRS", ckvm_GET_XCRS, kvm_xcrs()) }
    func set(_ value: kvm_xcrs) throws(SystemCallError) { try set("KVM_SET_XCRS", ckvm_SET_XCRS, value) }

    /// `area` has 4096 bytes. The corresponding ioctl is `KVM_GET_XSAVE`.
    func getXSave(_ area: UnsafeMutableRawPointer) throws(SystemCallError) {
        try descriptor.control("KVM_GET_XSAVE", ckvm_GET_XSAVE, area)
    }
    /// `area` has 4096 bytes. The corresponding ioctl is `KVM_SET_XSAVE`.
    func setXSave(_ area: UnsafeMutableRawPointer) throws(SystemCallError) {
        try descriptor.control("KVM_SET_XSAVE", ckvm_SET_XSAVE, area)
    }

    /// Reads MSRs; those the host doesn't have come back as 0. The corresponding ioctl is `KVM_GET_MSRS`.
    func msrs(_ indices: [UInt32]) throws(SystemCallError) -> [UInt64] {
        var values: [UInt64] = []
        while values.count < indices.count {
            let rest = Array(indices[values.count...])
            let read = try withMSRs(rest.map { ($0, 0) }) { (buffer: UnsafeMutableRawPointer) throws(SystemCallError) in
                let count = Int(try descriptor.control("KVM_GET_MSRS", ckvm_GET_MSRS, buffer))
                let entries = (buffer + MemoryLayout<kvm_msrs>.size).assumingMemoryBound(to: kvm_msr_entry.self)
                return (0..<min(count, rest.count)).map { entries[$0].data }
            }
            values += read
            if read.count < rest.count { values.append(0) }
        }
        return values
    }

    /// Writes MSRs; those the host doesn't have are passed over when the value is 0.
    ///
    /// The corresponding ioctl is `KVM_SET_MSRS`.
    func set(msrs pairs: [(UInt32, UInt64)]) throws(SystemCallError) {
        var rest = pairs[...]
        while !rest.isEmpty {
            let written = try withMSRs(Array(rest)) { (buffer: UnsafeMutableRawPointer) throws(SystemCallError) in
                Int(try descriptor.control("KVM_SET_MSRS", ckvm_SET_MSRS, buffer))
            }
            rest = rest.dropFirst(written)
            if let refused = rest.popFirst(), refused.1 != 0 {
                throw SystemCallError("KVM_SET_MSRS(0x\(String(refused.0, radix: 16)))", errno: EINVAL)
            }
        }
    }

    /// The corresponding ioctl is `KVM_SET_CPUID2`.
    func set(cpuid entries: [CPUIDEntry]) throws(SystemCallError) {
        try withCPUID(entries, capacity: entries.count) { (buffer: UnsafeMutableRawPointer) throws(SystemCallError) in
            _ = try descriptor.control("KVM_SET_CPUID2", ckvm_SET_CPUID2, buffer)
        }
    }

    /// The corresponding ioctl is `KVM_SET_GUEST_DEBUG`.
    func setGuestDebug(_ mode: GuestDebug) throws(SystemCallError) {
        var debug = kvm_guest_debug()
        switch mode {
        case .off:
            break
        case .singleStep:
            debug.control = 1 | 2  // KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        case .breakpoint(let address):
            debug.control = 1 | 0x20000  // KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP
            debug.arch.debugreg.0 = address
            debug.arch.debugreg.7 = 0x402 | 1  // G0-less local enable of DR0, execution, LE
        }
        try descriptor.control("KVM_SET_GUEST_DEBUG", ckvm_SET_GUEST_DEBUG, updating: &debug)
    }

    /// Queues an external interrupt. The corresponding ioctl is `KVM_INTERRUPT`.
    func queueInterrupt(_ vector: UInt8) throws(SystemCallError) {
        try set("KVM_INTERRUPT", ckvm_INTERRUPT, kvm_interrupt(irq: UInt32(vector)))
    }

    /// Queues a non-maskable interrupt. The corresponding ioctl is `KVM_NMI`.
    func queueNMI() throws(SystemCallError) { try descriptor.control("KVM_NMI", ckvm_NMI) }
}

enum GuestDebug: Equatable {
    case off
    case singleStep
    /// Stop before the instruction at a linear address.
    case breakpoint(UInt64)
}

/// Lays out a `kvm_msrs` with its flexible array and passes it on.
private func withMSRs<R>(
    _ pairs: [(UInt32, UInt64)], _ body: (UnsafeMutableRawPointer) throws(SystemCallError) -> R
) throws(SystemCallError) -> R {
    let header = MemoryLayout<kvm_msrs>.size
    let bytes = header + pairs.count * MemoryLayout<kvm_msr_entry>.stride
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 8)
    defer { buffer.deallocate() }
    buffer.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    buffer.storeBytes(of: UInt32(pairs.count), as: UInt32.self)
    let entries = (buffer + header).assumingMemoryBound(to: kvm_msr_entry.self)
    for (i, pair) in pairs.enumerated() { entries[i] = kvm_msr_entry(index: pair.0, reserved: 0, data: pair.1) }
    return try body(buffer)
}
