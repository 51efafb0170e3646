import CZydis

/// The timestamp instructions of a loaded kernel, found by decoding it.
public enum TimestampSites {
    public struct Site: Codable, Equatable, Sendable {
        public var address: GuestPhysicalAddress
        /// Whether it is RDTSCP.
        public var withAux: Bool
    }

    /// Decodes a run of code from its start, once as 32-bit and once as 64-bit code, since kernels hold both; an
    /// instruction counts when either pass comes to it at an instruction boundary.
    public static func find(in code: Range<UInt64>, of memory: GuestMemory) -> [Site] {
        guard let bytes = memory.read(.init(code.lowerBound), count: Int(code.upperBound - code.lowerBound)) else {
            return []
        }
        var found: [UInt64: Bool] = [:]
        for isLong in [true, false] {
            sweep(bytes, bytes.indices, as64Bit: isLong) { found[code.lowerBound + UInt64($0)] = $1 }
        }
        return found.sorted { $0.key < $1.key }.map { Site(address: .init($0.key), withAux: $0.value) }
    }

    /// Decodes a run of code from its start; calls `body` with where each instruction lies and whether it is RDTSCP. A byte
    /// that begins no instruction is passed over.
    static func sweep(_ bytes: [UInt8], _ range: Range<Int>, as64Bit: Bool, _ body: (Int, Bool) -> Void) {
        var decoder = ZydisDecoder()
        let (mode, width) =
            as64Bit
            ? (ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64) : (ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        guard ZydisDecoderInit(&decoder, mode, width) & 0x8000_0000 == 0 else { return }
        bytes.withUnsafeBytes { whole in
            let raw = UnsafeRawBufferPointer(rebasing: whole[range])
            var instruction = ZydisDecodedInstruction()
            var offset = 0
            while offset < raw.count {
                let status = ZydisDecoderDecodeInstruction(&decoder, nil, raw.baseAddress! + offset,
                                                           ZyanUSize(raw.count - offset), &instruction)
                guard status & 0x8000_0000 == 0, instruction.length > 0 else {
                    offset += 1
                    continue
                }
                // A prefixed form is longer than what would replace it.
                if instruction.mnemonic == ZYDIS_MNEMONIC_RDTSC && instruction.length == 2
                    || instruction.mnemonic == ZYDIS_MNEMONIC_RDTSCP && instruction.length == 3 {
                    body(range.lowerBound + offset, instruction.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
                }
                offset += Int(instruction.length)
            }
        }
    }

    /// A port read of the same length: IN EAX, imm8, and for RDTSCP a NOP after it.
    static func replacement(for site: Site) -> [UInt8] {
        [0xE5, UInt8(site.withAux ? KVMEngine.rdtscpPort : KVMEngine.rdtscPort)] + (site.withAux ? [0x90] : [])
    }

    /// Replaces each site by a port read.
    public static func replace(_ sites: [Site], in memory: GuestMemory) {
        for site in sites { memory.write(replacement(for: site), at: site.address) }
    }
}
