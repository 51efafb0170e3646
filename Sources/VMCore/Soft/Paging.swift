/// Kinds of access that page-table rights tell apart.
enum Access {
    case read, write, fetch
    /// Made by the processor for itself: supervisor rights whatever CPL is.
    case systemRead, systemWrite

    var isWrite: Bool { self == .write || self == .systemWrite }
}

/// Paging. Source: Intel SDM Vol. 3A, chapter 4.
extension Core {
    /// Bits of entries.
    private enum Entry {
        static let present: UInt64 = 1
        static let writable: UInt64 = 2
        static let user: UInt64 = 4
        static let accessed: UInt64 = 0x20
        static let dirty: UInt64 = 0x40
        static let large: UInt64 = 0x80
        static let noExecute: UInt64 = 1 << 63
        static let address: UInt64 = 0x000F_FFFF_FFFF_F000
    }

    private enum Fault {
        static let present: UInt32 = 1
        static let write: UInt32 = 2
        static let user: UInt32 = 4
        static let reserved: UInt32 = 8
        static let fetch: UInt32 = 16
    }

    private var noExecuteEnabled: Bool { s.efer & 1 << 11 != 0 }
    private var smep: Bool { s.cr4 & 1 << 20 != 0 }
    private var smap: Bool { s.cr4 & 1 << 21 != 0 }
    /// MAXPHYADDR of the CPU model bounds what an entry may hold.
    private var reservedAddress: UInt64 { s.cpuid.pointee.reservedAddressBits }

    @inline(__always)
    func checkCanonical(_ linear: UInt64) throws(Trap) {
        if UInt64(bitPattern: Int64(bitPattern: linear << 16) >> 16) != linear { throw .protection }
    }

    /// Whether an address is none, in long mode with paging.
    @inline(__always)
    func isNonCanonical(_ linear: UInt64) -> Bool {
        isLong && UInt64(bitPattern: Int64(bitPattern: linear << 16) >> 16) != linear
    }

    private func pageFault(_ linear: UInt64, _ access: Access, _ code: UInt32) -> Trap {
        s.cr2 = linear
        var code = code
        if access.isWrite { code |= Fault.write }
        if s.cpl == 3 && access != .systemRead && access != .systemWrite { code |= Fault.user }
        if access == .fetch && (smep || noExecuteEnabled && (isLong || s.cr4 & 0x20 != 0)) { code |= Fault.fetch }
        return .exception(Vector.pf, code: code)
    }

    /// The physical address behind a linear one, accessed and dirty bits set; puts the translation into the TLB.
    func translate(_ linear: UInt64, _ access: Access) throws(Trap) -> UInt64 {
        let user = s.cpl == 3 && access != .systemRead && access != .systemWrite
        let page = linear & TLB.pageMask
        guard s.cr0 >> 31 != 0 else {
            fill(page, page, access, readable: true, writable: true)
            return linear & 0xFFFF_FFFF
        }
        if isNonCanonical(linear) {
            throw Trap(kind: .nonCanonical, hasErrorCode: true)
        }
        let found = try walk(linear, access)
        let rights = found.rights
        let isUserPage = rights & Entry.user != 0
        var readable = true
        var writable = rights & Entry.writable != 0
        if user {
            readable = isUserPage
            writable = writable && isUserPage
        } else {
            if s.cr0 & 1 << 16 == 0 { writable = true }
            // SMAP holds for implicit accesses whatever AC is. Source: Intel SDM Vol. 3A, 4.6.1.
            let implicit = access == .systemRead || access == .systemWrite
            if smap && isUserPage && (implicit ? s.cpl == 3 || s.flags & Flag.ac == 0 : s.flags & Flag.ac == 0) {
                readable = false
                writable = false
            }
        }
        let allowed: Bool
        switch access {
        case .fetch:
            allowed = rights & Entry.noExecute == 0 && (user ? isUserPage : !(smep && isUserPage))
        case .read, .systemRead: allowed = readable
        case .write, .systemWrite: allowed = writable
        }
        guard allowed else { throw pageFault(linear, access, Fault.present) }
        setBits(found, access)
        let physical = found.page | linear & 0xFFF
        // A write has to come by again to set the dirty bit.
        if access != .systemRead, access != .systemWrite {
            fill(page, found.page, access, readable: readable, writable: writable && (access.isWrite || found.isDirty))
        }
        return physical
    }

    /// A translation and the entries that it went through.
    private struct Walk {
        var page: UInt64 = 0
        /// Bits 1 and 2 where all entries have them, bit 63 where any has it.
        var rights: UInt64 = Entry.writable | Entry.user
        var isDirty = false
        var wide = true
        var count = 0
        // Physical addresses of the entries, the last one the page's.
        var entries: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)

        mutating func add(_ address: UInt64) {
            switch count {
            case 0: entries.0 = address
            case 1: entries.1 = address
            case 2: entries.2 = address
            default: entries.3 = address
            }
            count += 1
        }

        func entry(_ i: Int) -> UInt64 {
            switch i {
            case 0: entries.0
            case 1: entries.1
            case 2: entries.2
            default: entries.3
            }
        }
    }

    private func walk(_ linear: UInt64, _ access: Access) throws(Trap) -> Walk {
        var walk = Walk()
        var table: UInt64
        var level: UInt64
        if isLong {
            table = s.cr3 & Entry.address
            level = 4
        } else if s.cr4 & 0x20 != 0 {
            let pointer: UInt64
            switch linear >> 30 & 3 {
            case 0: pointer = s.pdpte.0
            case 1: pointer = s.pdpte.1
            case 2: pointer = s.pdpte.2
            default: pointer = s.pdpte.3
            }
            guard pointer & Entry.present != 0 else { throw pageFault(linear, access, 0) }
            table = pointer & Entry.address
            level = 2
        } else {
            return try walk32(linear, access)
        }
        while true {
            let shift = 3 + 9 * level
            let address = table + (linear >> shift & 511) * 8
            guard let place = hostAddress(address) else { throw pageFault(linear, access, 0) }
            let entry = place.load(as: UInt64.self)
            guard entry & Entry.present != 0 else { throw pageFault(linear, access, 0) }
            let large = level > 1 && entry & Entry.large != 0
            var reserved = reservedAddress
            if !noExecuteEnabled { reserved |= Entry.noExecute }
            if !isLong { reserved |= 0x7FF0_0000_0000_0000 }
            if large { reserved |= level >= 4 ? Entry.large : ((1 << shift) - 1) & 0x000F_FFFF_FFFF_E000 }
            guard entry & reserved == 0 else { throw pageFault(linear, access, Fault.present | Fault.reserved) }
            walk.add(address)
            walk.rights = walk.rights & entry & (Entry.writable | Entry.user) | (walk.rights | entry) & Entry.noExecute
            if level == 1 || large {
                let offset = (UInt64(1) << shift) - 1
                walk.page = (entry & Entry.address & ~offset | linear & offset) & TLB.pageMask
                walk.isDirty = entry & Entry.dirty != 0
                return walk
            }
            table = entry & Entry.address
            level -= 1
        }
    }

    private func walk32(_ linear: UInt64, _ access: Access) throws(Trap) -> Walk {
        var walk = Walk()
        walk.wide = false
        let first = s.cr3 & 0xFFFF_F000 + (linear >> 22 & 1023) * 4
        guard let place = hostAddress(first) else { throw pageFault(linear, access, 0) }
        let entry = UInt64(place.load(as: UInt32.self))
        guard entry & Entry.present != 0 else { throw pageFault(linear, access, 0) }
        walk.add(first)
        walk.rights = entry & (Entry.writable | Entry.user)
        if entry & Entry.large != 0, s.cr4 & 0x10 != 0 {
            guard entry & 0x3F_E000 & (0x20_0000 | reservedAddress >> 19) == 0 else {
                throw pageFault(linear, access, Fault.present | Fault.reserved)
            }
            walk.page = (entry >> 13 & 0xFF) << 32 | entry & 0xFFC0_0000 | linear & 0x3F_F000
            walk.isDirty = entry & Entry.dirty != 0
            return walk
        }
        let second = entry & 0xFFFF_F000 + (linear >> 12 & 1023) * 4
        guard let place = hostAddress(second) else { throw pageFault(linear, access, 0) }
        let last = UInt64(place.load(as: UInt32.self))
        guard last & Entry.present != 0 else { throw pageFault(linear, access, 0) }
        walk.add(second)
        walk.rights &= last
        walk.page = last & 0xFFFF_F000
        walk.isDirty = last & Entry.dirty != 0
        return walk
    }

    /// Sets accessed bits all the way and the dirty bit of the page.
    private func setBits(_ walk: Walk, _ access: Access) {
        for i in 0..<walk.count {
            let address = walk.entry(i)
            guard let page = filePage(address) else { continue }
            let place = s.ram + (page << 12 | Int(address & 0xFFF))
            // The bits lie in the low byte of entries of either width.
            let old = place.load(as: UInt8.self)
            var new = old | UInt8(Entry.accessed)
            if access.isWrite && i == walk.count - 1 { new |= UInt8(Entry.dirty) }
            guard new != old else { continue }
            // The running block goes on to its end, should an entry lie in its code: a load doesn't say which of its
            // instructions it belongs to.
            let running = s.block
            s.block = nil
            noteWrite(page, Int(address & 0xFFF), 1)
            s.block = running
            place.storeBytes(of: new, as: UInt8.self)
        }
    }

    /// Puts a translation into the TLB of the present kind of access.
    private func fill(_ page: UInt64, _ physical: UInt64, _ access: Access, readable: Bool, writable: Bool) {
        guard let filePage = filePage(physical & (s.cr0 >> 31 != 0 ? .max : 0xFFFF_FFFF)) else { return }
        let host = s.ram + filePage << 12
        if access == .fetch {
            let entry = s.codeTLB + Int(truncatingIfNeeded: page >> 12 & UInt64(TLB.codeEntries - 1))
            entry.pointee = CodeTLBEntry(tag: page, host: host, filePage: filePage)
            return
        }
        guard access == .read || access == .write, !s.checksAlignment else { return }
        if hasBreakpoints || access == .write && s.watched != nil { return }  // every access is looked at
        let entry = s.tlb + TLB.index(page)
        var made = TLBEntry(addend: Int(bitPattern: host) &- Int(bitPattern: UInt(page)), filePage: filePage)
        if readable { made.read = page }
        // Writes to pages with code have to be seen, and so has the first one since pages were last asked for.
        if s.watched != nil {
            entry.pointee = made
            return
        }
        if writable, access == .write, s.codeLines[filePage] == 0 {
            s.written[filePage >> 6] |= 1 << UInt64(filePage & 63)
            made.write = page
        } else if writable, s.codeLines[filePage] == 0, s.written[filePage >> 6] >> UInt64(filePage & 63) & 1 != 0 {
            made.write = page
        }
        entry.pointee = made
    }

    /// Forgets all translations.
    func flushTLB() {
        for i in 0..<(TLB.tables * TLB.entries) {
            s.tables[i].read = TLB.never
            s.tables[i].write = TLB.never
        }
        for i in 0..<(2 * TLB.codeEntries) { s.codeTables[i].tag = TLB.never }
        s.generation &+= 1
    }

    /// Forgets the translations of one page. Large pages are kept in pieces of 4 KiB, of which this finds one: so the
    /// rest goes as well.
    func flushPage(_ linear: UInt64) { flushTLB() }

    /// Makes writes to a page of the memory file go the slow way.
    func watchWrites(to filePage: Int) {
        for i in 0..<(TLB.tables * TLB.entries) where s.tables[i].filePage == filePage { s.tables[i].write = TLB.never }
    }

    /// Reads the page directory pointers of PAE paging from memory.
    ///
    /// - Throws: #GP where a present one has reserved bits set.
    func loadPDPTEs(_ cr3: UInt64) throws(Trap) {
        var values: [UInt64] = []
        for i in 0..<4 as Range<UInt64> {
            guard let place = hostAddress(cr3 & 0xFFFF_FFE0 + 8 * i) else { throw .protection }
            let value = place.load(as: UInt64.self)
            if value & 1 != 0, value & (reservedAddress | 0xFFF0_0000_0000_01E6) != 0 { throw .protection }
            values.append(value)
        }
        s.pdpte = (values[0], values[1], values[2], values[3])
    }
}
