import CKVM
import Dispatch

/// Bytes of a page.
public let pageSize = 4096

/// Where RAM lies in the guest physical address space.
public struct MemoryLayoutMap: Codable, Equatable, Sendable {
    /// A run of RAM; `address` and `bytes` are multiples of the page size.
    public struct Region: Codable, Equatable, Sendable {
        public var address: GuestPhysicalAddress
        public var bytes: UInt64
        /// Where the region lies in the memory file.
        public var fileOffset: UInt64

        public init(address: GuestPhysicalAddress, bytes: UInt64, fileOffset: UInt64) {
            self.address = address
            self.bytes = bytes
            self.fileOffset = fileOffset
        }

        public var end: GuestPhysicalAddress { address + bytes }
    }

    public var regions: [Region]

    /// Smallest and largest amount of RAM a machine can have, in bytes.
    public static let allowed: ClosedRange<UInt64> = (1 << 20)...(32 << 30)

    /// The classical PC map: a hole for video memory from 640 KiB to 768 KiB, RAM to 3 GiB at most, a hole for devices
    /// below 4 GiB, and the rest above. `bytes` counts the video hole, as memory sizes on PCs do.
    public init(pcWithBytes bytes: UInt64) {
        let bytes = min(max(bytes, Self.allowed.lowerBound), Self.allowed.upperBound) & ~UInt64(pageSize - 1)
        let low = min(bytes, 3 << 30)
        regions = [Region(address: .init(0), bytes: 0xA0000, fileOffset: 0)]
        regions.append(Region(address: .init(0xC0000), bytes: low - 0xC0000, fileOffset: 0xC0000))
        if bytes > low { regions.append(Region(address: .init(4 << 30), bytes: bytes - low, fileOffset: low)) }
    }

    public init(regions: [Region]) { self.regions = regions }

    /// Bytes of the memory file.
    public var fileBytes: UInt64 { regions.map { $0.fileOffset &+ $0.bytes }.max() ?? 0 }

    /// The guest physical address of a page of the memory file; nil for a page in a hole.
    public func address(ofFilePage page: Int) -> GuestPhysicalAddress? {
        let offset = UInt64(page) * UInt64(pageSize)
        for region in regions where offset >= region.fileOffset && offset < region.fileOffset + region.bytes {
            return region.address + (offset - region.fileOffset)
        }
        return nil
    }

    /// Whether the map, which may come from a file, is one that can be made.
    public var isValid: Bool {
        var last: UInt64 = 0
        var lastFile: UInt64 = 0
        for region in regions {
            guard region.address.rawValue % UInt64(pageSize) == 0, region.bytes % UInt64(pageSize) == 0,
                region.fileOffset % UInt64(pageSize) == 0, region.bytes > 0, region.bytes <= Self.allowed.upperBound,
                region.address.rawValue >= last, region.address.rawValue < 1 << 40,
                region.fileOffset >= lastFile, region.fileOffset < 1 << 40
            else { return false }
            last = region.end.rawValue
            lastFile = region.fileOffset + region.bytes
        }
        return !regions.isEmpty && regions.count <= 8 && fileBytes <= Self.allowed.upperBound
    }
}

/// Guest RAM in a memory file, with holes where loads and stores are device accesses.
///
/// Host addresses stay valid for the life of the object. The vCPU thread is the only one that writes; checkpoints read
/// while the vCPU is stopped.
public final class GuestMemory {
    public let map: MemoryLayoutMap
    /// The memory file; nil where a file-size limit forbids one and the memory is shared without a name.
    private let descriptor: FileDescriptor?
    /// The first byte of the memory file. Invariant: mapped for `map.fileBytes` bytes until deinit.
    let base: UnsafeMutableRawPointer
    /// Pages of the memory file that the monitor itself wrote since `takeMonitorWrites`.
    private var monitorWrites: Set<Int> = []

    public init(map: MemoryLayoutMap) throws(SystemCallError) {
        precondition(map.isValid, "a memory map is checked before memory is made from it")
        let fd = ckvm_memfd("guest")
        guard fd >= 0 else { throw SystemCallError("memfd_create") }
        let file = FileDescriptor(owning: fd)
        let hasFile = ftruncate(fd, Int(map.fileBytes)) == 0
        guard hasFile || ckvm_errno() == EFBIG else { throw SystemCallError("ftruncate") }
        descriptor = hasFile ? file : nil
        let kind = MAP_SHARED | MAP_NORESERVE | (hasFile ? 0 : MAP_ANONYMOUS)
        let pointer = mmap(nil, Int(map.fileBytes), PROT_READ | PROT_WRITE, kind, hasFile ? fd : -1, 0)
        guard let pointer, pointer != UnsafeMutableRawPointer(bitPattern: -1) else { throw SystemCallError("mmap guest") }
        base = pointer
        self.map = map
    }

    deinit { munmap(base, Int(map.fileBytes)) }

    /// Pages of the memory file, including those of holes within it.
    public var filePages: Int { Int(map.fileBytes) / pageSize }

    /// The offset in the memory file of a run that lies wholly in one region.
    func offset(of address: GuestPhysicalAddress, count: Int) -> Int? {
        guard count >= 0 else { return nil }
        for region in map.regions where address >= region.address && address < region.end {
            guard UInt64(count) <= region.end.rawValue - address.rawValue else { return nil }
            return Int(region.fileOffset + (address.rawValue - region.address.rawValue))
        }
        return nil
    }

    /// The guest physical address of a page of the memory file; nil for a page in a hole.
    public func address(ofFilePage page: Int) -> GuestPhysicalAddress? { map.address(ofFilePage: page) }

    /// The page of the memory file at a guest page number; nil in a hole.
    public func filePage(ofGuestPage number: UInt64) -> Int? {
        let (address, overflow) = number.multipliedReportingOverflow(by: UInt64(pageSize))
        return overflow ? nil : offset(of: GuestPhysicalAddress(address), count: pageSize).map { $0 / pageSize }
    }

    /// The bytes of a page of the memory file.
    @inlinable
    public func page(_ filePage: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: hostAddress(ofFilePage: filePage), count: pageSize)
    }

    @usableFromInline
    func hostAddress(ofFilePage page: Int) -> UnsafeMutableRawPointer {
        precondition(page >= 0 && page < filePages)
        return base + page * pageSize
    }

    /// Copies bytes out; nil when the run isn't wholly RAM of one region.
    public func read(_ address: GuestPhysicalAddress, count: Int) -> [UInt8]? {
        guard let offset = offset(of: address, count: count) else { return nil }
        return [UInt8](UnsafeRawBufferPointer(start: base + offset, count: count))
    }

    /// Reads a little-endian integer; nil outside RAM.
    public func load<T: FixedWidthInteger>(_ address: GuestPhysicalAddress, as type: T.Type) -> T? {
        guard let offset = offset(of: address, count: MemoryLayout<T>.size) else { return nil }
        return T(littleEndian: (base + offset).loadUnaligned(as: T.self))
    }

    /// Copies bytes in; false, with nothing written, when the run isn't wholly RAM of one region.
    @discardableResult
    public func write(_ bytes: UnsafeRawBufferPointer, at address: GuestPhysicalAddress) -> Bool {
        guard let offset = offset(of: address, count: bytes.count) else { return false }
        guard let source = bytes.baseAddress, bytes.count > 0 else { return true }
        (base + offset).copyMemory(from: source, byteCount: bytes.count)
        for page in (offset / pageSize)...((offset + bytes.count - 1) / pageSize) { monitorWrites.insert(page) }
        return true
    }

    @discardableResult
    public func write(_ bytes: [UInt8], at address: GuestPhysicalAddress) -> Bool {
        bytes.withUnsafeBytes { write($0, at: address) }
    }

    /// Replaces a page; nil content is a page of zeros.
    public func setPage(_ filePage: Int, to content: UnsafeRawBufferPointer?) {
        replacePage(filePage, by: content)
        monitorWrites.insert(filePage)
    }

    /// The same without a note of it: for whoever tells those that follow writes.
    func replacePage(_ filePage: Int, by content: UnsafeRawBufferPointer?) {
        let target = hostAddress(ofFilePage: filePage)
        if let source = content?.baseAddress {
            target.copyMemory(from: source, byteCount: pageSize)
        } else {
            memset(target, 0, pageSize)
        }
    }

    /// Replaces many pages; nil content is a page of zeros, and what stands there twice is the same. From so many on that it is worth it, two
    /// threads share the work: one processor alone doesn't use all of a host's memory bandwidth.
    func replacePages(_ pages: [(page: Int, content: UnsafeRawBufferPointer?)]) {
        guard pages.count >= Self.sharedCopy else {
            for (page, content) in pages { replacePage(page, by: content) }
            return
        }
        // Both threads only read the list, and this one waits for the other: nothing else touches memory meanwhile.
        nonisolated(unsafe) let (halves, memory) = ([pages[..<(pages.count / 2)], pages[(pages.count / 2)...]], self)
        DispatchQueue.concurrentPerform(iterations: 2) { part in
            for (page, content) in halves[part] { memory.replacePage(page, by: content) }
        }
    }

    /// Pages from which on two threads copy: some 500 µs of one, many times what waking the other takes.
    private static let sharedCopy = 512

    /// Notes that something other than the engine wrote to a page of the memory file.
    func noteMonitorWrite(_ filePage: Int) { monitorWrites.insert(filePage) }

    var hasMonitorWrites: Bool { !monitorWrites.isEmpty }

    /// The pages of the memory file that the monitor wrote since the last call.
    func takeMonitorWrites() -> Set<Int> {
        defer { monitorWrites.removeAll(keepingCapacity: true) }
        return monitorWrites
    }

    /// Calls `body` for each page of RAM that has ever been touched, in ascending order. Untouched pages are zeros.
    ///
    /// The holes of the memory file are passed over, so that asking doesn't allocate them.
    public func forEachTouchedPage(_ body: (Int) throws -> Void) rethrows {
        guard let descriptor else {
            for page in 0..<filePages where address(ofFilePage: page) != nil { try body(page) }
            return
        }
        var position = 0
        let end = Int(map.fileBytes)
        while position < end {
            let data = lseek(descriptor.rawValue, position, ckvm_SEEK_DATA)
            guard data >= 0 else { return }
            var hole = lseek(descriptor.rawValue, data, ckvm_SEEK_HOLE)
            if hole < 0 { hole = end }
            for page in (data / pageSize)..<min((hole + pageSize - 1) / pageSize, filePages)
            where address(ofFilePage: page) != nil {
                try body(page)
            }
            position = hole
        }
    }
}
