import Glibc

/// A translation of the software TLB: direct-mapped by linear page.
///
/// A tag is the linear address of the page where the access may go the fast way, and an address that no page has
/// where it may not: for want of rights, because the page is no RAM, or because writes to it have to be seen.
struct TLBEntry {
    var read = TLB.never
    var write = TLB.never
    /// Host address minus linear address.
    var addend = 0
    /// The page of the memory file.
    var filePage = 0
}

struct CodeTLBEntry {
    var tag = TLB.never
    var host: UnsafeMutableRawPointer?
    var filePage = 0
}

enum TLB {
    static let entries = 1024
    static let codeEntries = 256
    /// Data translations are kept apart for the three kinds of access that `Core.selectTLB` tells apart.
    static let tables = 3
    static let never: UInt64 = 1
    static let pageMask: UInt64 = ~0xFFF

    @inline(__always) static func index(_ linear: UInt64) -> Int { Int(truncatingIfNeeded: linear >> 12 & 1023) }
}

/// Loads and stores of guest memory by linear address.
extension Core {
    @inline(__always)
    private func host(_ linear: UInt64, _ entry: UnsafeMutablePointer<TLBEntry>) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: Int(bitPattern: UInt(linear)) &+ entry.pointee.addend).unsafelyUnwrapped
    }

    /// Tags hold page addresses, and entries of neighbouring pages differ: so the last byte decides, and an access
    /// that crosses a page never hits.
    @inline(__always)
    func load<T: Word>(_ linear: UInt64, _ type: T.Type) throws(Trap) -> T {
        let entry = s.tlb + TLB.index(linear)
        if (linear &+ (T.bytes - 1)) & TLB.pageMask == entry.pointee.read {
            return UnsafeRawPointer(host(linear, entry)).loadUnaligned(as: T.self)
        }
        return T(truncatingIfNeeded: try loadSlowly(linear, T.bytes))
    }

    @inline(__always)
    func store<T: Word>(_ linear: UInt64, _ value: T, _ op: UnsafeMutablePointer<MicroOp>) throws(Trap) {
        let entry = s.tlb + TLB.index(linear)
        if (linear &+ (T.bytes - 1)) & TLB.pageMask == entry.pointee.write {
            host(linear, entry).storeBytes(of: value, as: T.self)
            return
        }
        s.op = op
        try storeSlowly(linear, UInt64(truncatingIfNeeded: value), T.bytes)
    }

    /// Within an instruction that has set `s.op`.
    @inline(__always)
    func store<T: Word>(_ linear: UInt64, _ value: T) throws(Trap) { try store(linear, value, s.op) }

    @inline(__always)
    func loadToModify<T: Word>(_ linear: UInt64, _ type: T.Type) throws(Trap) -> T {
        let entry = s.tlb + TLB.index(linear)
        if (linear &+ (T.bytes - 1)) & TLB.pageMask == entry.pointee.write {
            let place = host(linear, entry)
            s.modifyHost = place
            return UnsafeRawPointer(place).loadUnaligned(as: T.self)
        }
        try checkModifiable(linear, T.bytes)
        s.modifyHost = nil
        s.modifyAddress = linear
        return try load(linear, T.self)
    }

    @inline(__always)
    func storeModified<T: Word>(_ value: T, _ op: UnsafeMutablePointer<MicroOp>) throws(Trap) {
        if let place = s.modifyHost {
            place.storeBytes(of: value, as: T.self)
        } else {
            try store(s.modifyAddress, value, op)
        }
    }

    // MARK: The slow way

    /// Throws where an operand of user mode has to be aligned and isn't. Only called on the slow way, which each access takes
    /// then.
    ///
    /// That comes before page faults, and after what is wrong with the address itself (Intel processors, measured; Intel SDM
    /// Vol. 3A, 6.9, has it the other way round). Source: Intel SDM Vol. 3A, 6.15, interrupt 17.
    @inline(__always)
    func checkAlignment(_ linear: UInt64, _ alignment: UInt64) throws(Trap) {
        if s.checksAlignment, linear & (alignment &- 1) != 0 { throw misaligned(linear) }
    }

    @inline(never)
    private func misaligned(_ linear: UInt64) -> Trap {
        isNonCanonical(linear) ? Trap(kind: .nonCanonical, hasErrorCode: true) : .exception(Vector.ac, code: 0)
    }

    @inline(never)
    private func loadSlowly(_ linear: UInt64, _ size: UInt64) throws(Trap) -> UInt64 {
        try checkAlignment(linear, size)
        return try loadPiece(linear, size)
    }

    @inline(never)
    private func storeSlowly(_ linear: UInt64, _ value: UInt64, _ size: UInt64) throws(Trap) {
        try checkAlignment(linear, size)
        try storePiece(linear, value, size)
    }

    /// Reads 1–8 bytes, which needn't be an operand of their own.
    func loadPiece(_ linear: UInt64, _ size: UInt64) throws(Trap) -> UInt64 {
        if hasBreakpoints { noteAccess(linear, size, writes: false) }
        let inPage = min(size, 0x1000 - (linear & 0xFFF))
        let first = try translate(linear, .read)
        if inPage == size { return try loadPhysical(first, size) }
        // Both pages are translated before either is read: a device must not see half an access that faults.
        let second = try translate((linear &+ inPage) & s.linearMask, .read)
        let low = try loadPhysical(first, inPage)
        return low | (try loadPhysical(second, size - inPage)) << (8 * inPage)
    }

    func storePiece(_ linear: UInt64, _ value: UInt64, _ size: UInt64) throws(Trap) {
        if hasBreakpoints { noteAccess(linear, size, writes: true) }
        let inPage = min(size, 0x1000 - (linear & 0xFFF))
        let first = try translate(linear, .write)
        if inPage == size { return try storePhysical(first, value, size) }
        let second = try translate((linear &+ inPage) & s.linearMask, .write)
        guard s.single || hostAddress(first) != nil && hostAddress(second) != nil else { throw .again }
        try storePhysical(first, value, inPage)
        try storePhysical(second, value >> (8 * inPage), size - inPage)
    }

    /// Whether a store would succeed.
    func checkWritable(_ linear: UInt64, _ size: UInt64) throws(Trap) { try check(linear, size, .write) }

    /// Whether an access of at most a page would succeed.
    private func check(_ linear: UInt64, _ size: UInt64, _ access: Access) throws(Trap) {
        _ = try translate(linear & s.linearMask, access)
        let last = (linear &+ size &- 1) & s.linearMask
        if last & TLB.pageMask != linear & TLB.pageMask { _ = try translate(last & TLB.pageMask, access) }
    }

    /// Whether an operand can be read and then replaced: one access that writes, or with some processors first one that reads.
    @inline(never)
    func checkModifiable(_ linear: UInt64, _ size: UInt64) throws(Trap) {
        try checkAlignment(linear, size)
        if s.profile.readsBeforeModifying { try check(linear, size, .read) }
        try check(linear, size, .write)
    }

    /// The host address of a byte of RAM; nil in a hole.
    @inline(__always)
    func hostAddress(_ physical: UInt64) -> UnsafeMutableRawPointer? {
        filePage(physical).map { s.ram + ($0 << 12 | Int(physical & 0xFFF)) }
    }

    func filePage(_ physical: UInt64) -> Int? {
        let page = physical >> 12
        for i in 0..<s.regionCount {
            let region = s.regions[i]
            if page &- region.firstPage < region.pages { return Int(region.filePage &+ (page &- region.firstPage)) }
        }
        return nil
    }

    /// Reads 1–8 bytes that lie in one page.
    private func loadPhysical(_ physical: UInt64, _ size: UInt64) throws(Trap) -> UInt64 {
        if let place = hostAddress(physical) {
            var value: UInt64 = 0
            memcpy(&value, place, Int(size))
            return value
        }
        return try answer(PendingExit(kind: .mmioRead, size: UInt8(size), address: physical, wantsAnswer: true))
    }

    private func storePhysical(_ physical: UInt64, _ value: UInt64, _ size: UInt64) throws(Trap) {
        guard let page = filePage(physical) else {
            let mask = size == 8 ? .max : (1 as UInt64) << (8 * size) - 1
            return try send(PendingExit(kind: .mmioWrite, size: UInt8(size), address: physical, value: value & mask))
        }
        noteWrite(page, Int(physical & 0xFFF), Int(size))
        var value = value
        memcpy(s.ram + (page << 12 | Int(physical & 0xFFF)), &value, Int(size))
    }

    /// A store to a page of RAM that goes the slow way: remembers it, and drops code that it replaces.
    func noteWrite(_ page: Int, _ offset: Int, _ size: Int) {
        if let watched = s.watched { watched.pointee.add(page << 12 | offset, size) }
        s.written[page >> 6] |= 1 << UInt64(page & 63)
        let lines = s.codeLines[page]
        guard lines != 0 else { return }
        let first = offset >> 6, last = (offset + size - 1) >> 6
        let touched = (UInt64.max << UInt64(first)) & (UInt64.max >> UInt64(63 - last))
        if lines & touched != 0 { dropCode(page: page, lines: touched) }
    }

    /// A host pointer to `size` bytes at a linear address, all in one page of RAM that may be written; nil where the
    /// slow way is to be taken.
    func writable(_ linear: UInt64, _ size: UInt64) throws(Trap) -> UnsafeMutableRawPointer? {
        let physical = try translate(linear, .write)
        guard let page = filePage(physical), 0x1000 - (linear & 0xFFF) >= size else { return nil }
        noteWrite(page, Int(physical & 0xFFF), Int(size))
        return s.ram + (page << 12 | Int(physical & 0xFFF))
    }

    // MARK: Devices

    /// What a device answers: at once where the instruction was started over with the answer, else the trap that
    /// brings it.
    func answer(_ exit: PendingExit, endsBlock: Bool = false) throws(Trap) -> UInt64 {
        guard s.single || endsBlock else { throw .again }
        if s.answersTaken < s.answerCount {
            s.answersTaken += 1
            return s.answers[s.answersTaken - 1]
        }
        guard s.answerCount < SoftEngine.maximumAnswers else { throw .unsupported }
        s.exit = exit
        throw .exit
    }

    /// Lets a write leave the guest when the instruction is complete.
    func send(_ exit: PendingExit, endsBlock: Bool = false) throws(Trap) {
        guard s.single || endsBlock else { throw .again }
        s.sliceEnd = 0
        guard s.outgoingCount < SoftEngine.maximumAnswers else { throw .unsupported }
        s.outgoing[s.outgoingCount] = exit
        s.outgoingCount += 1
    }

    // MARK: Supervisor accesses to tables

    /// Reads a descriptor table, TSS or the like with supervisor rights whatever CPL is.
    func systemLoad<T: Word>(_ linear: UInt64, _ type: T.Type) throws(Trap) -> T {
        let linear = linear & s.linearMask
        if s.cpl != 3 { return try load(linear, T.self) }
        if linear & 0xFFF <= 0x1000 - T.bytes {
            return T(truncatingIfNeeded: try loadPhysical(translate(linear, .systemRead), T.bytes))
        }
        var value: UInt64 = 0
        for i in 0..<T.bytes {
            let physical = try translate((linear &+ i) & s.linearMask, .systemRead)
            value |= (try loadPhysical(physical, 1)) << (8 * i)
        }
        return T(truncatingIfNeeded: value)
    }

    func systemStore<T: Word>(_ linear: UInt64, _ value: T) throws(Trap) {
        let first = linear & s.linearMask
        let last = (linear &+ T.bytes &- 1) & s.linearMask
        _ = try translate(first, .systemWrite)
        if last & TLB.pageMask != first & TLB.pageMask { _ = try translate(last & TLB.pageMask, .systemWrite) }
        for i in 0..<T.bytes {
            let physical = try translate((linear &+ i) & s.linearMask, .systemWrite)
            try storePhysical(physical, UInt64(truncatingIfNeeded: value) >> (8 * i) & 0xFF, 1)
        }
    }
}
