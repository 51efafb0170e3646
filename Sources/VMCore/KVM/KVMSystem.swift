import CKVM

/// An open file descriptor, closed with its owner.
public final class FileDescriptor: Sendable {
    public let rawValue: Int32

    public init(owning rawValue: Int32) { self.rawValue = rawValue }
    deinit { close(rawValue) }
}

extension FileDescriptor {
    /// An ioctl with an integer argument.
    @discardableResult
    func control(_ name: String, _ request: UInt, _ argument: UInt = 0) throws(SystemCallError) -> Int32 {
        let result = ckvm_ioctl(rawValue, request, argument)
        if result < 0 { throw SystemCallError(name) }
        return result
    }

    /// An ioctl with a pointer argument.
    @discardableResult
    func control(_ name: String, _ request: UInt, _ argument: UnsafeMutableRawPointer) throws(SystemCallError) -> Int32 {
        let result = ckvm_ioctl_ptr(rawValue, request, argument)
        if result < 0 { throw SystemCallError(name) }
        return result
    }

    @discardableResult
    func control<T>(_ name: String, _ request: UInt, updating value: inout T) throws(SystemCallError) -> Int32 {
        let result = withUnsafeMutablePointer(to: &value) { ckvm_ioctl_ptr(rawValue, request, $0) }
        if result < 0 { throw SystemCallError(name) }
        return result
    }
}

/// The KVM system descriptor.
///
/// Source: Linux, Documentation/virt/kvm/api.rst, "System ioctls".
public struct KVMSystem: Sendable {
    let descriptor: FileDescriptor

    /// Opens `path` and checks the API version.
    public init(path: String = "/dev/kvm") throws(HostError) {
        let fd = ckvm_open(path, O_RDWR)
        guard fd >= 0 else {
            switch ckvm_errno() {
            case ENOENT, ENODEV, ENXIO: throw .noDevice
            case EACCES, EPERM: throw .noPermission
            case EBUSY: throw .busy
            default: throw .call(SystemCallError("open \(path)"))
            }
        }
        descriptor = FileDescriptor(owning: fd)
        let version = ckvm_ioctl(fd, ckvm_GET_API_VERSION, 0)
        // Some other device file in its place answers with an error, not with a number.
        guard version == 12 else { throw version < 0 ? .noDevice : .wrongVersion(version) }
    }

    /// 0 where the capability is absent. The corresponding ioctl is `KVM_CHECK_EXTENSION`.
    public func check(_ capability: Int32) -> Int32 {
        max(0, ckvm_ioctl(descriptor.rawValue, ckvm_CHECK_EXTENSION, UInt(capability)))
    }

    /// Bytes of a vCPU's shared `kvm_run` area. The corresponding ioctl is `KVM_GET_VCPU_MMAP_SIZE`.
    func vcpuMapSize() throws(SystemCallError) -> Int {
        Int(try descriptor.control("KVM_GET_VCPU_MMAP_SIZE", ckvm_GET_VCPU_MMAP_SIZE))
    }

    /// The corresponding ioctl is `KVM_CREATE_VM`.
    func createVM() throws(SystemCallError) -> KVMVirtualMachine {
        while true {
            let fd = ckvm_ioctl(descriptor.rawValue, ckvm_CREATE_VM, 0)
            if fd >= 0 { return KVMVirtualMachine(descriptor: FileDescriptor(owning: fd)) }
            if ckvm_errno() != EINTR { throw SystemCallError("KVM_CREATE_VM") }
        }
    }

    /// What the host can show a guest. The corresponding ioctl is `KVM_GET_SUPPORTED_CPUID`.
    func supportedCPUID() throws(SystemCallError) -> [CPUIDEntry] {
        try withCPUID([], capacity: 256) { (buffer: UnsafeMutableRawPointer) throws(SystemCallError) in
            try descriptor.control("KVM_GET_SUPPORTED_CPUID", ckvm_GET_SUPPORTED_CPUID, buffer)
            let count = min(256, Int(buffer.load(as: kvm_cpuid2.self).nent))
            let entries = (buffer + MemoryLayout<kvm_cpuid2>.size).assumingMemoryBound(to: kvm_cpuid_entry2.self)
            return (0..<count).map { CPUIDEntry(entries[$0]) }
        }
    }
}

extension KVMSystem {
    /// `supportedCPUID` for callers outside the wrappers.
    public func supportedFeatures() throws(HostError) -> [CPUIDEntry] {
        do throws(SystemCallError) { return try supportedCPUID() } catch { throw .call(error) }
    }
}

/// Lays out a `kvm_cpuid2` with its flexible array and passes it on.
func withCPUID<R>(
    _ entries: [CPUIDEntry], capacity: Int, _ body: (UnsafeMutableRawPointer) throws(SystemCallError) -> R
) throws(SystemCallError) -> R {
    let header = MemoryLayout<kvm_cpuid2>.size
    let buffer = UnsafeMutableRawPointer.allocate(
        byteCount: header + capacity * MemoryLayout<kvm_cpuid_entry2>.stride, alignment: 8)
    defer { buffer.deallocate() }
    buffer.initializeMemory(
        as: UInt8.self, repeating: 0, count: header + capacity * MemoryLayout<kvm_cpuid_entry2>.stride)
    buffer.storeBytes(of: UInt32(capacity), as: UInt32.self)
    let slots = (buffer + header).assumingMemoryBound(to: kvm_cpuid_entry2.self)
    for (i, entry) in entries.prefix(capacity).enumerated() { slots[i] = entry.kvm }
    return try body(buffer)
}

/// A KVM virtual machine descriptor.
///
/// Source: Linux, Documentation/virt/kvm/api.rst, "VM ioctls".
struct KVMVirtualMachine {
    let descriptor: FileDescriptor

    /// The corresponding ioctl is `KVM_CREATE_VCPU`.
    func createVCPU(id: UInt, mapSize: Int) throws(SystemCallError) -> KVMVirtualCPU {
        let fd = try descriptor.control("KVM_CREATE_VCPU", ckvm_CREATE_VCPU, id)
        return try KVMVirtualCPU(descriptor: FileDescriptor(owning: fd), mapSize: mapSize)
    }

    /// The corresponding ioctl is `KVM_ENABLE_CAP`.
    func enable(_ capability: Int32, name: String, _ argument: UInt64 = 0) throws(SystemCallError) {
        var request = kvm_enable_cap()
        request.cap = UInt32(capability)
        request.args.0 = argument
        try descriptor.control("KVM_ENABLE_CAP(\(name))", ckvm_ENABLE_CAP, updating: &request)
    }

    /// The corresponding ioctl is `KVM_SET_USER_MEMORY_REGION`.
    func setMemory(slot: Int, at address: GuestPhysicalAddress, host: UnsafeMutableRawPointer, bytes: Int,
                   logDirty: Bool) throws(SystemCallError) {
        var region = kvm_userspace_memory_region()
        region.slot = UInt32(slot)
        region.flags = logDirty ? 1 /* KVM_MEM_LOG_DIRTY_PAGES */ : 0
        region.guest_phys_addr = address.rawValue
        region.memory_size = UInt64(bytes)
        region.userspace_addr = UInt64(UInt(bitPattern: host))
        try descriptor.control("KVM_SET_USER_MEMORY_REGION", ckvm_SET_USER_MEMORY_REGION, updating: &region)
    }

    /// Fills `bitmap` with a bit a page written since the last call. The corresponding ioctl is `KVM_GET_DIRTY_LOG`.
    func dirtyLog(slot: Int, into bitmap: UnsafeMutableBufferPointer<UInt64>) throws(SystemCallError) {
        var log = kvm_dirty_log()
        log.slot = UInt32(slot)
        log.dirty_bitmap = UnsafeMutableRawPointer(bitmap.baseAddress)
        try descriptor.control("KVM_GET_DIRTY_LOG", ckvm_GET_DIRTY_LOG, updating: &log)
    }

    /// Lets the guest reach only the MSRs in `allowed` without the monitor; ranges of at most 12,288 each.
    ///
    /// The corresponding ioctl is `KVM_X86_SET_MSR_FILTER`.
    func setMSRFilter(allowed: [ClosedRange<UInt32>]) throws(SystemCallError) {
        var filter = kvm_msr_filter()
        filter.flags = 1  // KVM_MSR_FILTER_DEFAULT_DENY
        var bitmaps: [UnsafeMutablePointer<UInt8>] = []
        defer { bitmaps.forEach { $0.deallocate() } }
        withUnsafeMutableBytes(of: &filter.ranges) { raw in
            let ranges = raw.bindMemory(to: kvm_msr_filter_range.self)
            for (i, range) in allowed.prefix(ranges.count).enumerated() {
                let bytes = (range.count + 7) / 8
                let bitmap = UnsafeMutablePointer<UInt8>.allocate(capacity: bytes)
                bitmap.initialize(repeating: 0xff, count: bytes)
                bitmaps.append(bitmap)
                ranges[i].flags = 3  // KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE
                ranges[i].base = range.lowerBound
                ranges[i].nmsrs = UInt32(range.count)
                ranges[i].bitmap = bitmap
            }
        }
        try descriptor.control("KVM_X86_SET_MSR_FILTER", ckvm_X86_SET_MSR_FILTER, updating: &filter)
    }
}
