import Glibc

/// Operands of more than 8 bytes.
extension Core {
    /// Reads `count` bytes at a linear address. `alignment` is what alignment checks want of that.
    @inline(__always)
    func loadBytes(_ linear: UInt64, _ count: Int, alignment: UInt64 = 1, to target: UnsafeMutableRawPointer) throws(Trap) {
        let entry = s.tlb + TLB.index(linear)
        if (linear &+ UInt64(count &- 1)) & TLB.pageMask == entry.pointee.read,
            linear & TLB.pageMask == entry.pointee.read,
            let place = UnsafeRawPointer(bitPattern: Int(bitPattern: UInt(linear)) &+ entry.pointee.addend) {
            target.copyMemory(from: place, byteCount: count)
            return
        }
        try checkAlignment(linear, alignment)
        try loadPieces(linear, count, to: target)
    }

    @inline(never)
    private func loadPieces(_ linear: UInt64, _ count: Int, to target: UnsafeMutableRawPointer) throws(Trap) {
        // All pages are there before a device sees any of it.
        for page in pages(linear, count) { _ = try translate(page, .read) }
        var done = 0
        while done < count {
            let address = (linear &+ UInt64(done)) & s.linearMask
            let size = piece(count - done)
            var value: UInt64
            switch size {
            case _ where s.checksAlignment: value = try loadPiece(address, UInt64(size))
            case 8: value = try load(address, UInt64.self)
            case 4: value = UInt64(try load(address, UInt32.self))
            case 2: value = UInt64(try load(address, UInt16.self))
            default: value = UInt64(try load(address, UInt8.self))
            }
            memcpy(target + done, &value, size)
            done += size
        }
    }

    /// Makes sure that a store which follows won't fault, nor have to be started over. `alignment` is what alignment checks
    /// want of its address.
    func prepareStore(_ linear: UInt64, _ count: Int, alignment: UInt64 = 1) throws(Trap) {
        let entry = s.tlb + TLB.index(linear)
        if (linear &+ UInt64(count &- 1)) & TLB.pageMask == entry.pointee.write,
            linear & TLB.pageMask == entry.pointee.write { return }
        try checkAlignment(linear, alignment)
        for page in pages(linear, count) {
            let physical = try translate(page, .write)
            guard s.single || hostAddress(physical) != nil else { throw .again }
        }
    }

    /// Writes `count` bytes. `prepareStore` has come before, and `s.op` is set.
    @inline(__always)
    func storeBytes(_ linear: UInt64, _ count: Int, from source: UnsafeRawPointer) throws(Trap) {
        let entry = s.tlb + TLB.index(linear)
        if (linear &+ UInt64(count &- 1)) & TLB.pageMask == entry.pointee.write,
            linear & TLB.pageMask == entry.pointee.write,
            let place = UnsafeMutableRawPointer(bitPattern: Int(bitPattern: UInt(linear)) &+ entry.pointee.addend) {
            place.copyMemory(from: source, byteCount: count)
            return
        }
        try storePieces(linear, count, from: source)
    }

    @inline(never)
    private func storePieces(_ linear: UInt64, _ count: Int, from source: UnsafeRawPointer) throws(Trap) {
        var done = 0
        while done < count {
            let address = (linear &+ UInt64(done)) & s.linearMask
            let size = piece(count - done)
            let place = source + done
            switch size {
            case _ where s.checksAlignment:
                var value: UInt64 = 0
                memcpy(&value, place, size)
                try storePiece(address, value, UInt64(size))
            case 8: try store(address, place.loadUnaligned(as: UInt64.self))
            case 4: try store(address, place.loadUnaligned(as: UInt32.self))
            case 2: try store(address, place.loadUnaligned(as: UInt16.self))
            default: try store(address, place.loadUnaligned(as: UInt8.self))
            }
            done += size
        }
    }

    private func piece(_ left: Int) -> Int { left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1 }

    /// The first address of each page that `count` bytes touch.
    private func pages(_ linear: UInt64, _ count: Int) -> [UInt64] {
        var found = [linear & s.linearMask]
        var next = (linear | 0xFFF) &+ 1
        while next &- linear < UInt64(count) {
            found.append(next & s.linearMask)
            next = next &+ 0x1000
        }
        return found
    }
}
