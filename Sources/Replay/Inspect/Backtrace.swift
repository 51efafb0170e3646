import VMCore

/// Where the guest was called from.
struct Backtrace {
    struct Frame: Equatable {
        var address: UInt64
        /// Whether the address merely lies on the stack and follows a call, and belongs to no chain of frame pointers.
        var isGuess: Bool
    }

    private let walk: PageWalk
    private let core: CoreRegisters
    private let wordBytes: Int

    /// Frames that are followed, and stack words that are searched for return addresses.
    private static let most = 64
    private static let searched = 256

    init(_ core: CoreRegisters, memory: GuestMemory) {
        walk = PageWalk(memory: memory, state: core)
        self.core = core
        wordBytes = core.control.efer >> 10 & 1 == 1 ? 8 : core.control.cr0 & 1 == 1 ? 4 : 2
    }

    /// The present instruction, the return addresses along the chain of frame pointers, then what else on the stack
    /// looks like a return address.
    func frames() -> [Frame] {
        var frames = [Frame(address: core.linearRIP, isGuess: false)]
        // A chain of frame pointers goes up the stack; each frame is the caller's pointer and the return address.
        var pointer = core.general.rbp
        var previous = core.general.rsp
        var chained: Set<UInt64> = []
        while frames.count < Self.most, pointer >= previous, let next = word(at: pointer),
            let address = word(at: pointer &+ UInt64(wordBytes)), followsCall(address)
        {
            frames.append(Frame(address: address, isGuess: false))
            chained.insert(pointer &+ UInt64(wordBytes))
            (previous, pointer) = (pointer &+ 1, next)
        }
        for index in 0..<Self.searched where frames.count < Self.most {
            let place = core.general.rsp &+ UInt64(index * wordBytes)
            guard let value = word(at: place) else { break }
            if !chained.contains(place), followsCall(value) { frames.append(Frame(address: value, isGuess: true)) }
        }
        return frames
    }

    private func word(at offset: UInt64) -> UInt64? {
        let mask = wordBytes == 8 ? UInt64.max : wordBytes == 4 ? 0xFFFF_FFFF : 0xFFFF
        let bytes = walk.bytes(at: core.ss.base &+ (offset & mask), count: wordBytes)
        return bytes.count == wordBytes ? bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } : nil
    }

    private func followsCall(_ address: UInt64) -> Bool {
        guard address >= 7 else { return false }
        let code = walk.bytes(at: core.cs.base &+ address &- 7, count: 7)
        return code.count == 7 && Disassembler(core).endsWithCall(code, at: address)
    }
}
