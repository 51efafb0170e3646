import Glibc

/// Someone who is told of each instruction that a soft engine executes.
///
/// The engine takes one instruction at a time meanwhile, and no store goes the fast way.
public struct InstructionWatch {
    /// An instruction begins. It may make exits before it ends, or none and never end, where it faults.
    public var begins: (InstructionView) -> Void
    /// It is complete: the view has what it changed.
    public var ends: (InstructionView) -> Void
    /// An exception, an interrupt or an NMI with this vector has been delivered; the view has what that wrote.
    public var enters: (UInt8, InstructionView) -> Void

    public init(begins: @escaping (InstructionView) -> Void, ends: @escaping (InstructionView) -> Void,
                enters: @escaping (UInt8, InstructionView) -> Void) {
        (self.begins, self.ends, self.enters) = (begins, ends, enters)
    }
}

/// The processor around one instruction. Valid while the watch is being told.
public struct InstructionView {
    let core: Core
    let watched: UnsafeMutablePointer<WatchedInstruction>

    /// Linear address of the instruction.
    public var address: UInt64 { watched.pointee.address }
    /// What decoding depends on: equal for code that means the same.
    public var mode: UInt32 { core.s.mode }

    /// The next 16 bytes of code as two words, low first; nil where the page ends before.
    public func code() -> (UInt64, UInt64)? {
        let address = watched.pointee.address
        let entry = core.s.codeTLB + Int(truncatingIfNeeded: address >> 12 & UInt64(TLB.codeEntries - 1))
        guard address & 0xFFF <= 0xFF0, entry.pointee.tag == address & TLB.pageMask, let host = entry.pointee.host else {
            return nil
        }
        let place = UnsafeRawPointer(host + Int(address & 0xFFF))
        return (place.loadUnaligned(as: UInt64.self), place.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
    }

    /// Calls `body` with the number of each general register that has changed, in the order of their encoding, 16 for RFLAGS,
    /// and its new content.
    public func forEachChangedRegister(_ body: (Int, UInt64) -> Void) {
        for i in 0..<16 {
            let now = core.gpr(i)
            if now != watched.pointee.registers[i] { body(i, now) }
        }
        let flags = core.rflags
        if flags != watched.pointee.flags { body(16, flags) }
    }

    /// Calls `body` with the number of each vector register that has changed, and the place of its 32 bytes.
    public func forEachChangedVector(_ body: (Int, UnsafeRawPointer) -> Void) {
        let now = core.s.floatingPoint.raw
        guard memcmp(now, watched.pointee.vectors, WatchedInstruction.vectorBytes) != 0 else { return }
        for i in 0..<16 where memcmp(now + 32 * i, watched.pointee.vectors + 32 * i, 32) != 0 { body(i, now + 32 * i) }
    }

    /// Calls `body` with each run of bytes that was written: where it lies in guest physical memory, and its content now.
    public func forEachWrite(_ body: (GuestPhysicalAddress, UnsafeRawBufferPointer) -> Void) {
        for i in 0..<watched.pointee.writeCount {
            let write = watched.pointee.writes[i]
            guard let address = core.guestAddress(ofFileOffset: write.offset) else { continue }
            body(address, UnsafeRawBufferPointer(start: core.s.ram + write.offset, count: write.count))
        }
    }

    /// Whether there were more writes than are kept.
    public var hasMoreWrites: Bool { watched.pointee.writesLost > 0 }
}

/// What is kept of the instruction under way.
struct WatchedInstruction {
    struct Write {
        /// In the memory file.
        var offset: Int
        var count: Int
    }

    /// More than any instruction but FXSAVE, XSAVE and repeated string instructions makes.
    static let mostWrites = 96
    static let vectorBytes = 512

    var isOpen = false
    var address: UInt64 = 0
    var flags: UInt64 = 0
    let registers: UnsafeMutablePointer<UInt64>
    let vectors: UnsafeMutableRawPointer
    let writes: UnsafeMutablePointer<Write>
    var writeCount = 0
    var writesLost = 0

    init() {
        registers = .allocate(capacity: 16)
        registers.initialize(repeating: 0, count: 16)
        vectors = .allocate(byteCount: Self.vectorBytes, alignment: 64)
        memset(vectors, 0, Self.vectorBytes)
        writes = .allocate(capacity: Self.mostWrites)
    }

    func free() {
        registers.deallocate()
        vectors.deallocate()
        writes.deallocate()
    }

    /// Adds a run of bytes; one that continues the last run makes it longer.
    mutating func add(_ offset: Int, _ count: Int) {
        if writeCount > 0, writes[writeCount - 1].offset + writes[writeCount - 1].count == offset {
            writes[writeCount - 1].count += count
        } else if writeCount < Self.mostWrites {
            writes[writeCount] = Write(offset: offset, count: count)
            writeCount += 1
        } else {
            writesLost += 1
        }
    }
}

extension Core {
    func guestAddress(ofFileOffset offset: Int) -> GuestPhysicalAddress? {
        let page = UInt64(offset) >> 12
        for i in 0..<s.regionCount {
            let region = s.regions[i]
            if page &- region.filePage < region.pages {
                return GuestPhysicalAddress((region.firstPage &+ (page &- region.filePage)) << 12 | UInt64(offset & 0xFFF))
            }
        }
        return nil
    }

    /// Takes down the state before an instruction.
    func openWatch(_ watched: UnsafeMutablePointer<WatchedInstruction>) {
        watched.pointee.isOpen = true
        watched.pointee.address = (s.codeBase &+ s.rip) & s.linearMask
        watched.pointee.flags = rflags
        memcpy(watched.pointee.registers, raw, 128)
        memcpy(watched.pointee.vectors, s.floatingPoint.raw, WatchedInstruction.vectorBytes)
        watched.pointee.writeCount = 0
        watched.pointee.writesLost = 0
    }
}
