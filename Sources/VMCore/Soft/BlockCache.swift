import Glibc

/// A run of decoded instructions within one page, which ends at a branch or at whatever changes how code is read.
struct Block {
    var key: BlockKey
    /// Invariant: lies in the arena behind this header and ends with a micro-op that leaves the block.
    var ops: UnsafeMutablePointer<MicroOp>
    var instructions: UInt32
    /// Length of its code.
    var bytes: UInt16
    var nextInBucket: UnsafeMutablePointer<Block>?
    var nextInPage: UnsafeMutablePointer<Block>?
    /// Where its last instruction leads.
    var taken = Link()
    var notTaken = Link()
}

/// A remembered way from one block to another, good for one generation.
struct Link {
    var block: UnsafeMutablePointer<Block>?
    var generation: UInt64 = 0
}

struct BlockKey: Equatable {
    /// Where the block begins in the memory file.
    var address: UInt64
    var mode: UInt32
    /// 0 for an ordinary block; `single` for one instruction; else the block ends before this page offset plus 1.
    var variant: UInt32

    static let single: UInt32 = 0x10000

    var bucket: Int {
        Int(truncatingIfNeeded: (address ^ UInt64(mode) << 20 ^ UInt64(variant) << 27) &* 0x9E37_79B9_7F4A_7C15 >> 48)
            & (BlockCache.buckets - 1)
    }
}

/// Remembers the block at a linear address, good for one generation.
struct JumpEntry {
    var linear: UInt64 = 0
    var generation: UInt64 = 0
    var mode: UInt32 = 0
    var block: UnsafeMutablePointer<Block>?

    static let count = 4096

    @inline(__always) static func index(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: linear ^ linear >> 12) & (count - 1)
    }
}

/// Decoded code, found by where it lies in the memory file. When its arena is full, all of it is dropped.
struct BlockCache {
    static let buckets = 1 << 14
    static let arenaBytes = 48 << 20
    static let maximumInstructions = 64
    /// An instruction makes at most five micro-ops; one more leaves the block.
    static let maximumOps = maximumInstructions * 5 + 1

    let table: UnsafeMutablePointer<UnsafeMutablePointer<Block>?>
    /// The first block on each page of the memory file.
    let pages: UnsafeMutablePointer<UnsafeMutablePointer<Block>?>
    let arena: UnsafeMutableRawPointer
    var used = 0
    let scratch: UnsafeMutablePointer<MicroOp>
    /// A block that crosses a page: decoded anew each time.
    let crossing: UnsafeMutablePointer<Block>

    init(filePages: Int) {
        table = .allocate(capacity: Self.buckets)
        table.initialize(repeating: nil, count: Self.buckets)
        // calloc: pages of zeros that cost nothing until touched.
        pages = calloc(filePages, MemoryLayout<UnsafeMutablePointer<Block>?>.stride)!
            .bindMemory(to: UnsafeMutablePointer<Block>?.self, capacity: filePages)
        arena = .allocate(byteCount: Self.arenaBytes, alignment: 64)
        scratch = .allocate(capacity: Self.maximumOps)
        crossing = .allocate(capacity: 1)
        let ops = UnsafeMutablePointer<MicroOp>.allocate(capacity: 8)
        crossing.initialize(to: Block(key: BlockKey(address: .max, mode: 0, variant: 0), ops: ops, instructions: 1, bytes: 0))
    }

    func free() {
        table.deallocate()
        releaseZeroed(pages)
        arena.deallocate()
        scratch.deallocate()
        crossing.pointee.ops.deallocate()
        crossing.deallocate()
    }

    /// Room for a block with `count` micro-ops; nil when the arena is full.
    mutating func allocate(_ count: Int) -> (UnsafeMutablePointer<Block>, UnsafeMutablePointer<MicroOp>)? {
        let header = (MemoryLayout<Block>.stride + 31) & ~31
        let bytes = (header + count * MemoryLayout<MicroOp>.stride + 63) & ~63
        guard used + bytes <= Self.arenaBytes else { return nil }
        let place = arena + used
        used += bytes
        return (place.bindMemory(to: Block.self, capacity: 1),
                (place + header).bindMemory(to: MicroOp.self, capacity: count))
    }
}

extension Core {
    @inline(__always)
    func end(of op: UnsafeMutablePointer<MicroOp>) -> UInt64 {
        (s.rip &+ UInt64(op.pointee.offset) &+ UInt64(op.pointee.length)) & s.ripMask
    }

    /// The block at RIP, decoded if need be; nil where the guest is to stop before it.
    @inline(never)
    func findBlock(_ linear: UInt64) throws(Trap) -> UnsafeMutablePointer<Block>? {
        if s.hasBreakpoint, linear == s.breakpoint { return arrivalCounts ? nil : try passBreakpoint(linear) }
        let block = try block(at: linear, single: false)
        if block != s.cache.pointee.crossing {
            s.jumps[JumpEntry.index(linear)] = JumpEntry(linear: linear, generation: s.generation, mode: s.mode, block: block)
        }
        return block
    }

    /// The block at the breakpoint after an arrival that doesn't count. It is remembered apart, for the next arrival has to be
    /// looked at as well.
    private func passBreakpoint(_ linear: UInt64) throws(Trap) -> UnsafeMutablePointer<Block> {
        s.passedArrivals += 1
        s.jumps[JumpEntry.index(linear)] = JumpEntry()
        if s.passing.linear == linear, s.passing.generation == s.generation, s.passing.mode == s.mode, let block = s.passing.block {
            return block
        }
        let block = try block(at: linear, single: false)
        if block != s.cache.pointee.crossing {
            s.passing = JumpEntry(linear: linear, generation: s.generation, mode: s.mode, block: block)
        }
        return block
    }

    /// The block at a linear address, which is RIP's, in the kind asked for.
    func block(at linear: UInt64, single: Bool) throws(Trap) -> UnsafeMutablePointer<Block> {
        let code = try codePage(linear)
        let offset = Int(linear & 0xFFF)
        var variant: UInt32 = single ? BlockKey.single : 0
        if !single, s.hasBreakpoint, (linear ^ s.breakpoint) & TLB.pageMask == 0, s.breakpoint > linear {
            variant = UInt32(s.breakpoint & 0xFFF) + 1
        }
        if s.mode & (ModeKey.long64 | ModeKey.flat) == 0 { try checkCodeLimit(0) }
        let key = BlockKey(address: UInt64(code.filePage) << 12 | UInt64(offset), mode: s.mode, variant: variant)
        let bucket = key.bucket
        var candidate = s.cache.pointee.table[bucket]
        while let block = candidate {
            if block.pointee.key == key {
                if s.mode & (ModeKey.long64 | ModeKey.flat) == 0, !fitsCodeLimit(block.pointee.bytes) { break }
                return block
            }
            candidate = block.pointee.nextInBucket
        }
        return try buildBlock(linear, code, key)
    }

    private func codePage(_ linear: UInt64) throws(Trap) -> (host: UnsafeMutableRawPointer, filePage: Int) {
        let page = linear & TLB.pageMask
        let entry = s.codeTLB + Int(truncatingIfNeeded: page >> 12 & UInt64(TLB.codeEntries - 1))
        if entry.pointee.tag != page {
            let physical = try translate(linear, .fetch)
            // Code in a hole: no processor's emulation fetches from devices.
            guard filePage(physical) != nil else { throw .unsupported }
        }
        return (entry.pointee.host.unsafelyUnwrapped, entry.pointee.filePage)
    }

    private func fitsCodeLimit(_ bytes: UInt16) -> Bool {
        bytes == 0 || s.rip + UInt64(bytes) - 1 <= UInt64(segment(SegmentIndex.cs).pointee.limit)
    }

    private func checkCodeLimit(_ distance: UInt64) throws(Trap) {
        if s.rip &+ distance > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .protection }
    }

    private func buildBlock(_ linear: UInt64, _ code: (host: UnsafeMutableRawPointer, filePage: Int), _ key: BlockKey)
        throws(Trap) -> UnsafeMutablePointer<Block> {
        let offset = Int(linear & 0xFFF)
        let scratch = s.cache.pointee.scratch
        var decoder = InstructionDecoder(mode: s.mode, ops: scratch)
        var end = offset
        var instructions = 0
        let most = key.variant == BlockKey.single ? 1 : BlockCache.maximumInstructions
        let stop = key.variant == 0 || key.variant == BlockKey.single ? Int.max : Int(key.variant) - 1
        let limited = key.mode & (ModeKey.long64 | ModeKey.flat) == 0
        while instructions < most, end < pageSize, end != stop {
            let room = pageSize - end
            let result = decoder.decode(code.host + end, room, offset: end - offset)
            if case .truncated = result {
                if instructions == 0 { return try crossingBlock(linear, code.host + offset, room, key) }
                break
            }
            if limited, !fitsCodeLimit(UInt16(end - offset) + UInt16(decoder.length)) {
                if instructions == 0 { throw .protection }
                decoder.undo()
                break
            }
            instructions += 1
            end += decoder.length
            if case .ends = result { break }
        }
        decoder.finish(offset: end - offset)
        let count = decoder.count
        guard let (block, ops) = s.cache.pointee.allocate(count) else {
            dropAllCode()
            return try self.block(at: linear, single: key.variant == BlockKey.single)
        }
        memcpy(ops, scratch, count * MemoryLayout<MicroOp>.stride)
        block.initialize(to: Block(key: key, ops: ops, instructions: UInt32(instructions), bytes: UInt16(end - offset)))
        insert(block, filePage: code.filePage, offset: offset, end: end)
        return block
    }

    private func insert(_ block: UnsafeMutablePointer<Block>, filePage: Int, offset: Int, end: Int) {
        let cache = s.cache
        let bucket = block.pointee.key.bucket
        block.pointee.nextInBucket = cache.pointee.table[bucket]
        cache.pointee.table[bucket] = block
        block.pointee.nextInPage = cache.pointee.pages[filePage]
        cache.pointee.pages[filePage] = block
        if s.codeLines[filePage] == 0 { watchWrites(to: filePage) }
        s.codeLines[filePage] |= Self.lines(offset, end)
    }

    private static func lines(_ offset: Int, _ end: Int) -> UInt64 {
        (UInt64.max << UInt64(offset >> 6)) & (UInt64.max >> UInt64(63 - (max(end, offset + 1) - 1) >> 6))
    }

    /// An instruction that lies on two pages. It isn't kept, since either page may be mapped elsewhere next time.
    private func crossingBlock(_ linear: UInt64, _ start: UnsafeMutableRawPointer, _ room: Int, _ key: BlockKey)
        throws(Trap) -> UnsafeMutablePointer<Block> {
        if s.mode & (ModeKey.long64 | ModeKey.flat) == 0 { try checkCodeLimit(UInt64(room)) }
        let second = try codePage((linear &+ UInt64(room)) & s.linearMask)
        let block = s.cache.pointee.crossing
        let bytes = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 16)
        defer { bytes.deallocate() }
        memset(bytes, 0x90, 16)
        bytes.copyMemory(from: start, byteCount: min(room, 15))
        if room < 15 { (bytes + room).copyMemory(from: second.host, byteCount: 15 - room) }
        var decoder = InstructionDecoder(mode: s.mode, ops: block.pointee.ops)
        if case .truncated = decoder.decode(bytes, 15, offset: 0) { decoder.emitUndefined(offset: 0, length: 15, protection: true) }
        decoder.finish(offset: decoder.length)
        block.pointee.bytes = UInt16(decoder.length)
        block.pointee.taken = Link()
        block.pointee.notTaken = Link()
        return block
    }

    /// Drops the blocks that lie on some lines of a page, because these are written.
    @inline(never)
    func dropCode(page: Int, lines: UInt64) {
        let cache = s.cache
        var left: UInt64 = 0
        var link = cache.pointee.pages + page
        while let block = link.pointee {
            let start = Int(block.pointee.key.address & 0xFFF)
            let covered = Self.lines(start, start + Int(block.pointee.bytes))
            if covered & lines != 0 {
                link.pointee = block.pointee.nextInPage
                unlink(block)
                if block == s.block { leaveAfterInstruction() }
            } else {
                left |= covered
                link = block.pointer(to: \.nextInPage)!
            }
        }
        s.codeLines[page] = left
        s.generation &+= 1
    }

    private func unlink(_ block: UnsafeMutablePointer<Block>) {
        var link = s.cache.pointee.table + block.pointee.key.bucket
        while let other = link.pointee, other != block { link = other.pointer(to: \.nextInBucket)! }
        if link.pointee == block { link.pointee = block.pointee.nextInBucket }
    }

    /// The running block was changed by its own instruction: what follows that is decoded anew.
    private func leaveAfterInstruction() {
        guard let block = s.block else { return }
        var op = s.op
        let offset = op.pointee.offset
        // A block ends with a micro-op that leaves it, so the search ends.
        while op.pointee.offset == offset {
            if op.pointee.leaves { return }
            op += 1
        }
        if op.pointee.leaves && op.pointee.code == .leave { return }
        // The rest of the block no longer counts as executed.
        var rest = UInt64(0)
        var last = op.pointee.offset
        var scan = op
        while true {
            if scan == op || scan.pointee.offset != last {
                if scan.pointee.code != .leave { rest += 1 }
                last = scan.pointee.offset
            }
            if scan.pointee.leaves { break }
            scan += 1
        }
        s.retired &-= rest
        block.pointee.instructions -= UInt32(rest)
        op.pointee = MicroOp.leave(offset: op.pointee.offset)
    }

    /// Drops all blocks. Not to be called while one runs.
    func dropAllCode() {
        let cache = s.cache
        for i in 0..<BlockCache.buckets {
            var next = cache.pointee.table[i]
            while let block = next {
                let page = Int(block.pointee.key.address >> 12)
                cache.pointee.pages[page] = nil
                s.codeLines[page] = 0
                next = block.pointee.nextInBucket
            }
            cache.pointee.table[i] = nil
        }
        cache.pointee.used = 0
        s.generation &+= 1
    }

    /// The instructions of the running block before the one that `op` belongs to.
    func instructionsBefore(_ op: UnsafeMutablePointer<MicroOp>) -> UInt64 {
        guard let block = s.block else { return 0 }
        var count: UInt64 = 0
        var scan = block.pointee.ops
        var last = scan.pointee.offset
        while scan < op, scan.pointee.offset != op.pointee.offset {
            scan += 1
            if scan.pointee.offset != last {
                count += 1
                last = scan.pointee.offset
            }
        }
        return count
    }
}

extension MicroOp {
    /// Whether nothing after it in its block is executed.
    var leaves: Bool { code.rawValue >= OpCode.coldEnd.rawValue }

    static func leave(offset: UInt16) -> MicroOp {
        MicroOp(code: .leave, cold: .none, a: 0, b: 0, base: Slot.zero, index: Slot.zero, scale: 0,
                segment: SegmentIndex.none, displacement: 0, offset: offset, length: 0, form: .init(bits: 0), imm: 0, mask: .max)
    }
}

/// Frees what calloc made; within a type that has a `free` of its own.
private func releaseZeroed(_ pointer: UnsafeMutableRawPointer) { free(pointer) }
