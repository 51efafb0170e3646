import VMCore

/// Where the guest was called from.
public struct Backtrace {
    public struct Frame: Equatable, Sendable {
        public var address: UInt64
        public var kind: Kind

        public init(address: UInt64, kind: Kind) {
            self.address = address
            self.kind = kind
        }
    }

    public enum Kind: String, Sendable {
        /// The next instruction.
        case here
        /// A return address.
        case call
        /// Kernel code that an interrupt or exception interrupted.
        case interrupted
        /// Where user mode goes on.
        case user
        /// What lies on the stack and follows a call, but belongs to no chain.
        case guess
    }

    private let walk: PageWalk
    private let core: CoreRegisters
    private let wordBytes: Int
    private let unwinding: KernelUnwinding?

    /// Frames that are followed, and stack words that are searched for return addresses.
    private static let most = 64
    private static let searched = 256

    public init(_ core: CoreRegisters, memory: GuestMemory, unwinding: KernelUnwinding? = nil) {
        walk = PageWalk(memory: memory, state: core)
        self.core = core
        self.unwinding = unwinding
        wordBytes = core.control.efer >> 10 & 1 == 1 ? 8 : core.control.cr0 & 1 == 1 ? 4 : 2
    }

    /// The present instruction, and the return addresses. Where the guest is a kernel whose tables are known, they are
    /// exact; else there is the chain of frame pointers, then what else on the stack looks like a return address.
    public func frames() -> [Frame] {
        let here = Frame(address: core.linearRIP, kind: .here)
        if let unwinding, wordBytes == 8, core.cpl == 0 {
            let unwinder = OrcUnwinder(table: unwinding.table, slide: unwinding.slide) { word(at: $0) }
            let (frames, end) = unwinder.unwind(core, limit: Self.most - 1)
            switch end {
            case .complete: return [here] + frames
            case .lost(let rsp) where !frames.isEmpty: return [here] + frames + guesses(from: rsp, most: Self.most - frames.count)
            case .lost: break
            }
        }
        var frames = [here]
        // A chain of frame pointers goes up the stack; each frame is the caller's pointer and the return address.
        var pointer = core.general.rbp
        var previous = core.general.rsp
        var chained: Set<UInt64> = []
        while frames.count < Self.most, pointer >= previous, let next = word(at: pointer),
            let address = word(at: pointer &+ UInt64(wordBytes)), followsCall(address)
        {
            frames.append(Frame(address: address, kind: .call))
            chained.insert(pointer &+ UInt64(wordBytes))
            (previous, pointer) = (pointer &+ 1, next)
        }
        return frames + guesses(from: core.general.rsp, most: Self.most - frames.count, but: chained)
    }

    /// What looks like a return address, but for what lies at the places named.
    private func guesses(from stack: UInt64, most: Int, but known: Set<UInt64> = []) -> [Frame] {
        var frames: [Frame] = []
        for index in 0..<Self.searched where frames.count < most {
            let place = stack &+ UInt64(index * wordBytes)
            guard let value = word(at: place) else { break }
            if !known.contains(place), followsCall(value) { frames.append(Frame(address: value, kind: .guess)) }
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
