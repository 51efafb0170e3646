import CZydis

/// Instructions that a loaded kernel has port reads in place of, so that the monitor answers them.
public struct TrappedInstructions: OptionSet, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// RDTSC and RDTSCP: each read of the counter is recorded.
    public static let timestamps = TrappedInstructions(rawValue: 1)
    /// CPUID: it answers as the CPU model does, where a KVM shows guests the processor's own features.
    public static let identification = TrappedInstructions(rawValue: 2)
}

extension Sequence<InstructionSites.Site> {
    /// What the ports stand for in a machine with these sites.
    public func trapped(by timestamps: TimestampPolicy) -> TrappedInstructions {
        reduce(timestamps == .trap ? .timestamps : []) { $0.union($1.instruction.kind) }
    }

    /// How many there are of a kind.
    public func count(of kind: TrappedInstructions) -> Int { count { $0.instruction.kind == kind } }
}

/// The instructions of a loaded kernel that are replaced, found by decoding it.
public enum InstructionSites {
    public enum Instruction: String, CaseIterable, Codable, Sendable {
        case rdtsc, rdtscp, cpuid

        /// Bytes of the form without prefixes. One with prefixes is left: what would replace it isn't as long.
        var length: UInt8 { self == .rdtscp ? 3 : 2 }

        var kind: TrappedInstructions { self == .cpuid ? .identification : .timestamps }

        /// The port that stands for it: the second byte of `IN EAX, imm8`.
        var port: UInt16 {
            switch self {
            case .cpuid: 0xED
            case .rdtsc: 0xEE
            case .rdtscp: 0xEF
            }
        }

        /// What reading a double word from a port stands for.
        init?(port: UInt16, in trapped: TrappedInstructions) {
            guard !trapped.isEmpty,
                let found = Self.allCases.first(where: { $0.port == port && trapped.contains($0.kind) })
            else { return nil }
            self = found
        }

        /// A port read of the same length: IN EAX, imm8, and for RDTSCP a NOP after it.
        var replacement: [UInt8] { [0xE5, UInt8(port)] + (self == .rdtscp ? [0x90] : []) }

        /// Whether the opcode of one can go on with this byte, behind 0F.
        static func mayBegin(with second: UInt8) -> Bool { second == 0x31 || second == 0x01 || second == 0xA2 }

        init?(_ decoded: ZydisDecodedInstruction) {
            switch decoded.mnemonic {
            case ZYDIS_MNEMONIC_CPUID: self = .cpuid
            case ZYDIS_MNEMONIC_RDTSC: self = .rdtsc
            case ZYDIS_MNEMONIC_RDTSCP: self = .rdtscp
            default: return nil
            }
            guard decoded.length == length else { return nil }
        }
    }

    public struct Site: Codable, Equatable, Sendable {
        public var address: GuestPhysicalAddress
        public var instruction: Instruction

        public init(address: GuestPhysicalAddress, instruction: Instruction) {
            self.address = address
            self.instruction = instruction
        }

        private enum CodingKeys: CodingKey {
            case address, instruction
            /// In place of `instruction` in traces of vmrr 0.1: whether it is RDTSCP.
            case withAux
        }

        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            address = try values.decode(GuestPhysicalAddress.self, forKey: .address)
            instruction = try values.decodeIfPresent(Instruction.self, forKey: .instruction)
                ?? (values.decode(Bool.self, forKey: .withAux) ? .rdtscp : .rdtsc)
        }

        public func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: CodingKeys.self)
            try values.encode(address, forKey: .address)
            try values.encode(instruction, forKey: .instruction)
        }
    }

    /// Decodes a run of code from its start, once as 32-bit and once as 64-bit code, since kernels hold both; an
    /// instruction counts when either pass comes to it at an instruction boundary.
    public static func find(_ wanted: TrappedInstructions, in code: Range<UInt64>, of memory: GuestMemory) -> [Site] {
        guard let bytes = memory.read(.init(code.lowerBound), count: Int(code.upperBound - code.lowerBound)) else {
            return []
        }
        var found: [UInt64: Instruction] = [:]
        for isLong in [true, false] {
            sweep(bytes, bytes.indices, as64Bit: isLong) { found[code.lowerBound + UInt64($0)] = $1 }
        }
        return found.filter { wanted.contains($0.value.kind) }.sorted { $0.key < $1.key }
            .map { Site(address: .init($0.key), instruction: $0.value) }
    }

    /// Decodes a run of code from its start; calls `body` with where each instruction lies that can be replaced. A byte that
    /// begins no instruction is passed over.
    static func sweep(_ bytes: [UInt8], _ range: Range<Int>, as64Bit: Bool, _ body: (Int, Instruction) -> Void) {
        var decoder = ZydisDecoder()
        let (mode, width) =
            as64Bit
            ? (ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64) : (ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        guard ZydisDecoderInit(&decoder, mode, width) & 0x8000_0000 == 0 else { return }
        bytes.withUnsafeBytes { whole in
            let raw = UnsafeRawBufferPointer(rebasing: whole[range])
            var decoded = ZydisDecodedInstruction()
            var offset = 0
            while offset < raw.count {
                let status = ZydisDecoderDecodeInstruction(&decoder, nil, raw.baseAddress! + offset,
                                                           ZyanUSize(raw.count - offset), &decoded)
                guard status & 0x8000_0000 == 0, decoded.length > 0 else {
                    offset += 1
                    continue
                }
                if let instruction = Instruction(decoded) { body(range.lowerBound + offset, instruction) }
                offset += Int(decoded.length)
            }
        }
    }

    /// Replaces each site by a port read.
    public static func replace(_ sites: [Site], in memory: GuestMemory) {
        for site in sites { memory.write(site.instruction.replacement, at: site.address) }
    }
}
