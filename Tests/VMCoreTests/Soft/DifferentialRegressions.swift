/// Instructions on which the soft engine and a processor once disagreed. Each runs with many states.
struct DifferentialRegressions {
    var what: String
    var mode = DifferentialMachine.Mode.long64
    var code: [UInt8]
    /// The register that holds the operand's address.
    var operandIn: Int?
    /// With alignment checks.
    var checksAlignment = false
    /// Intel's processors do otherwise, and no profile says so: see docs/soft-engine-instructions.md.
    var isOfAMD = false

    static let all: [Self] = [
        Self(what: "CR2 of a read-modify-write across pages is the second page", code: [0xF0, 0x48, 0x01, 0x03], operandIn: 3),
        Self(what: "BMI instructions exist", code: [0xC4, 0xC2, 0x40, 0xF2, 0xEE]),
        Self(what: "PMULHW keeps the upper half", code: [0x66, 0x45, 0x0F, 0xE5, 0xCB]),
        Self(what: "PMULHUW keeps the upper half", code: [0x66, 0x45, 0x0F, 0xE4, 0xCB]),
        Self(what: "PMULHRSW rounds", code: [0x66, 0x0F, 0x38, 0x0B, 0xCB]),
        Self(what: "FNINIT leaves the registers where they are", code: [0xDB, 0xE3]),
        Self(what: "FLDENV leaves the registers where they are", code: [0xD9, 0x23], operandIn: 3),
        Self(what: "FNSAVE leaves the registers where they are", code: [0xDD, 0x33], operandIn: 3),
        Self(what: "MOVZX takes 16 bits to 16 bits", code: [0x66, 0x44, 0x0F, 0xB7, 0xCA]),
        Self(what: "SHLD of 16 bits by more than 16 goes on in the source", code: [0x66, 0x0F, 0xA4, 0xCD, 0x55]),
        Self(what: "SHRD of 16 bits by more than 16 goes on in the source", code: [0x66, 0x0F, 0xAC, 0xCD, 0x55]),
        Self(what: "SHLD of 16 bits by 16 sets OF as CF", code: [0x66, 0x0F, 0xA4, 0xCD, 0x10]),
        Self(what: "MASKMOVDQU wants all 16 bytes writable", code: [0xBF, 0xF8, 0x0F, 0x04, 0x00, 0x66, 0x0F, 0xF7, 0xCA]),
        Self(what: "OF of INC to the most negative number", code: [0x49, 0xBA, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0x49, 0xFF, 0xC2]),
        Self(what: "PAUSE with REX.B exchanges RAX and R8", code: [0xF3, 0x4D, 0x90], isOfAMD: true),
        Self(what: "BSF sets PF by its result", code: [0x45, 0x0F, 0xBC, 0xE1]),
        Self(what: "BEXTR's undefined flags", code: [0xC4, 0x42, 0x18, 0xF7, 0xE1]),
        Self(what: "ENTER looks where the stack will end", code: [0xC8, 0x00, 0x1F, 0x00]),
        Self(what: "PCMPESTRM's lengths are 32 bits without REX.W", code: [0x66, 0x47, 0x0F, 0x3A, 0x60, 0xE1, 0x55]),
        Self(what: "a fault of a gather leaves the mask of what comes before it cleared", code: [0xC4, 0xE2, 0x09, 0x91, 0x0C, 0x78]),
        Self(what: "OF of DEC with CF set", code: [0x49, 0xBA, 0, 0, 0, 0, 0, 0, 0, 0x80, 0xF9, 0x49, 0xFF, 0xCA]),
        Self(what: "the x87 keeps denormals and pseudo-denormals", code: [0xDB, 0x2B, 0xDB, 0x7B, 0x10], operandIn: 3),
        Self(what: "an x87 exception waits for the next instruction", code: [0xD8, 0x23, 0x9B], operandIn: 3),
        Self(what: "an operand of 2 bytes has to be aligned", code: [0x66, 0x8B, 0x0B], operandIn: 3, checksAlignment: true),
        Self(what: "one of 8 has to be", code: [0x48, 0x01, 0x0B], operandIn: 3, checksAlignment: true),
        Self(what: "one of 16 that needn't be aligned isn't checked", code: [0x0F, 0x10, 0x0B], operandIn: 3, checksAlignment: true),
        Self(what: "one of 16 that has to be aligned raises #GP", code: [0x0F, 0x28, 0x0B], operandIn: 3, checksAlignment: true),
        Self(what: "one of 10 is checked as one of 8", code: [0xDB, 0x2B], operandIn: 3, checksAlignment: true),
        Self(what: "FNSAVE's area is checked for 4 bytes", code: [0xDD, 0x33], operandIn: 3, checksAlignment: true),
        Self(what: "FXSAVE's area is checked for 4 bytes, then for 16", code: [0x0F, 0xAE, 0x03], operandIn: 3, checksAlignment: true),
        Self(what: "MASKMOVDQU's operand is checked for 8 bytes", code: [0x48, 0x89, 0xDF, 0x66, 0x0F, 0xF7, 0xCA], operandIn: 3, checksAlignment: true),
        Self(what: "VCVTPH2PS's 8 bytes aren't checked", code: [0xC4, 0xE2, 0x79, 0x13, 0x0B], operandIn: 3, checksAlignment: true),
        Self(what: "a segment register is popped as 2 bytes", code: [0x48, 0x89, 0xDC, 0x0F, 0xA9], operandIn: 3, checksAlignment: true),
        Self(what: "ENTER's new top is checked", code: [0x48, 0x89, 0xDC, 0xC8, 0x04, 0x00, 0x00], operandIn: 3, checksAlignment: true),
        Self(what: "alignment comes before page faults", code: [0xBB, 0x02, 0x10, 0x04, 0x00, 0x8B, 0x03], checksAlignment: true),
        Self(what: "a non-canonical address comes before alignment", code: [0x48, 0xBB, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x8B, 0x03], checksAlignment: true),
        Self(what: "each element of a string instruction is checked", code: [0x48, 0x89, 0xDE, 0x48, 0x8D, 0x7B, 0x20, 0xB9, 0x03, 0x00, 0x00, 0x00, 0xF3, 0xA5], operandIn: 3, checksAlignment: true),
        Self(what: "an x87 exception comes before a misaligned store", code: [0xDD, 0x1B], operandIn: 3, checksAlignment: true),
        Self(what: "a misaligned store of MMX sets the top of the stack, not the tags", code: [0x0F, 0xE7, 0x2B], operandIn: 3, checksAlignment: true),
        Self(what: "POPF ends the checks", code: [0x9C, 0x48, 0x81, 0x24, 0x24, 0xFF, 0xFF, 0xFB, 0xFF, 0x9D, 0x48, 0x8B, 0x43, 0x01], operandIn: 3, checksAlignment: true),
    ]

    func makeCase(seed: UInt64) throws -> DifferentialCase {
        var generator = DifferentialGenerator(DifferentialCatalogue(empty: mode), seed: seed, checksAlignment: checksAlignment)
        guard let made = generator.make(code: code, operandIn: operandIn) else {
            throw DifferentialMachine.Failure(description: "\(what): no instruction")
        }
        return made
    }
}
